//! What becomes of a device's failures. In a process of its own, because panics are listened to in all
//! of one.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use burn::tensor::{Device, DeviceKind};
use retort_model::{Error, answered, guard, unanswered};

#[test]
fn panics_become_errors_that_name_the_first() {
    let error = failed(|| panic!("CUDA_ERROR_ECC_UNCORRECTABLE"));
    assert!(matches!(error, Error::Device { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CUDA_ERROR_ECC_UNCORRECTABLE"), "{text}");
    assert!(text.contains("guard.rs:"), "{text}");

    // A thread that serves the device dies, and who waits for its answer is told that none comes.
    let error = failed(|| {
        let server = std::thread::spawn(|| panic!("the device is lost"));
        server.join().expect("no answer");
    });
    assert!(error.to_string().contains("the device is lost"), "{error}");

    for words in [
        "An IO error happened\nCaused by:\n  can't allocate buffer of size: 144000000\nNo backtrace",
        "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
        "Out of memory",
        "An IO error happened\nCaused by:\n  out of device memory allocating 144000000 bytes",
        "An out-of-memory error happened during launch\nCaused by:\n  a kernel",
    ] {
        let error = failed(|| panic!("{words}"));
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    let error = failed(|| panic!("libdevice.10.bc was not found: the kernel calls a function"));
    assert!(matches!(error, Error::NoLibdevice), "{error}");

    // One that dies while nobody is told can be asked after, until the device answers.
    guard::<(), Error>(&gpu(), || {
        assert_eq!(unanswered(), None);
        let _ = std::thread::spawn(|| panic!("a queue that nobody empties")).join();
        let (said, _) = unanswered().unwrap();
        assert!(said.contains("a queue that nobody empties"), "{said}");
        answered();
        assert_eq!(unanswered(), None);
        Ok(())
    })
    .unwrap();

    // Errors are passed on, and nothing of earlier panics is left.
    let passed = guard::<(), _>(&gpu(), || Err(Error::UnknownDevice("gpu".to_owned())));
    assert!(matches!(passed, Err(Error::UnknownDevice(_))));
    assert_eq!(guard::<_, Error>(&gpu(), || Ok(3)).unwrap(), 3);
    assert!(failed(|| panic!("again")).to_string().contains("again"));

    // The CPU does not fail: there a panic is a mistake of ours.
    let of_cpu = || guard::<(), Error>(&Device::flex(), || panic!("a mistake"));
    assert!(std::panic::catch_unwind(of_cpu).is_err());
}

/// Not opened: none has to be there.
fn gpu() -> Device {
    Device::wgpu(DeviceKind::DiscreteGpu(0))
}

fn failed(work: impl FnOnce()) -> Error {
    guard::<(), Error>(&gpu(), || {
        work();
        Ok(())
    })
    .unwrap_err()
}
