//! A stand-in for NVIDIA's driver, for machines without a GPU: the `libcuda.so` of a device that the CPU
//! imitates. It is told what to be by the environment, and found by `LD_LIBRARY_PATH`.
//!
//! Kernels are run as their PTX says, thread by thread, warps in step; CUDA's flushing of what is nearly 0 is
//! left out. What ends a GPU's context ends this one's, with a word on stderr: addresses that are not the
//! device's or not aligned, threads that wait for others that are elsewhere; and maps of tensors that a
//! driver refuses are refused. What a GPU only does wrong now and then, two threads at one place without a
//! `bar.sync` between them, does so in kernels whose names have a word of `STAND_IN_RACES`, as does a barrier
//! that some threads have ended before. Instructions that are not known here are refused when a kernel is
//! loaded.
//!
//! | variable | what it is |
//! |---|---|
//! | `STAND_IN_SM` | the architecture, 90 |
//! | `STAND_IN_CUDA` | the driver's version, 13000 |
//! | `STAND_IN_DEVICES` | how many GPUs there are, 1 |
//! | `STAND_IN_MEMORY` | bytes of memory of them all, 149 GiB |
//! | `STAND_IN_RUN` | 0: kernels are counted and not run; what is timed is made up, what is read is zeros |
//! | `STAND_IN_TIME` | nanoseconds that each kernel then takes, one after the other, beside the CPU: 0 |
//! | `STAND_IN_POISON` | 0: new memory is zeros, and not what is no number; blocks of 64 MiB always are |
//! | `STAND_IN_RACES` | words of names of kernels in which races are looked for |
//! | `STAND_IN_FAIL` | `NAME:TIMES:CODE`: from so many calls of that name on, it fails with that code |
//! | `STAND_IN_PTX` | a folder for the PTX of all kernels |
//! | `STAND_IN_PTXAS` | NVIDIA's assembler, which then assembles it there; what it says of registers is beside it |
//! | `STAND_IN_REPORT` | a file for what was called, how often, and the most memory held, when the process ends |

#![allow(non_snake_case, clippy::missing_safety_doc)]

mod machine;
mod memory;
mod number;
mod ptx;
mod tensor;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char};
use std::io::Write;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use memory::{give_back, take};

const INVALID_VALUE: i32 = 1;
const OUT_OF_MEMORY: i32 = 2;
const INVALID_DEVICE: i32 = 101;
const NOT_READY: i32 = 600;
const INVALID_PTX: i32 = 218;
const NOT_FOUND: i32 = 500;

#[derive(Default)]
struct Counts {
    calls: BTreeMap<&'static str, (u64, u64)>,
    kernels: BTreeMap<String, (u64, u64, f64)>,
}

static COUNTS: Mutex<Option<Counts>> = Mutex::new(None);
static POISON: AtomicI32 = AtomicI32::new(0);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str, otherwise: i64) -> i64 {
    variable(name).and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn architecture() -> i64 {
    static SM: OnceLock<i64> = OnceLock::new();
    *SM.get_or_init(|| number("STAND_IN_SM", 90))
}

/// Counts a call, which fails where `STAND_IN_FAIL=NAME:TIMES:CODE` says so: after so many times, with that
/// code; and so do all others after one that leaves a context unusable.
fn asked(name: &'static str, bytes: u64) -> i32 {
    static WISH: OnceLock<Option<(String, u64, i32)>> = OnceLock::new();
    let wish = WISH.get_or_init(|| {
        let wish = variable("STAND_IN_FAIL")?;
        let mut parts = wish.split(':');
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    let times = {
        let mut counts = COUNTS.lock().unwrap();
        let call = counts.get_or_insert_default().calls.entry(name).or_default();
        *call = (call.0 + 1, call.1 + bytes);
        call.0
    };
    let poison = POISON.load(Ordering::SeqCst);
    if poison != 0 {
        return poison;
    }
    match wish {
        Some((which, after, code)) if which == name && times > *after => {
            if *code == 214 || (700..800).contains(code) {
                POISON.store(*code, Ordering::SeqCst);
            }
            *code
        }
        _ => 0,
    }
}

macro_rules! ask {
    ($name:literal, $bytes:expr) => {
        let code = asked($name, $bytes as u64);
        if code != 0 {
            return code;
        }
    };
}

// The device.

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: u32) -> i32 {
    ask!("cuInit", 0);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    unsafe { *version = number("STAND_IN_CUDA", 13000) as i32 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> i32 {
    ask!("cuDeviceGetCount", 0);
    unsafe { *count = number("STAND_IN_DEVICES", 1) as i32 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    if i64::from(ordinal) >= number("STAND_IN_DEVICES", 1) {
        return INVALID_DEVICE;
    }
    unsafe { *device = ordinal };
    0
}

unsafe fn say(words: &str, target: *mut c_char, length: i32) {
    let bytes = words.as_bytes();
    let count = bytes.len().min(length as usize - 1);
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), target, count);
        *target.add(count) = 0;
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, _: i32) -> i32 {
    unsafe { say(&format!("a stand-in for sm_{}", architecture()), name, length) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, length: i32, device: i32) -> i32 {
    unsafe { say(&format!("0000:{:02x}:00.0", device + 1), id, length) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(id: *mut u8, device: i32) -> i32 {
    unsafe { std::ptr::write_bytes(id, device as u8 + 1, 16) };
    0
}

fn all_memory() -> u64 {
    number("STAND_IN_MEMORY", 149 << 30) as u64
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: i32) -> i32 {
    unsafe { *bytes = all_memory() as usize };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, all: *mut usize) -> i32 {
    unsafe {
        *all = all_memory() as usize;
        *free = (all_memory() - memory::held()) as usize;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _: i32) -> i32 {
    let sm = architecture();
    let found = match attribute {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 49152,
        10 => 32,
        12 => 65536,
        16 => 132,
        38 => 50 << 20,
        39 => {
            if matches!(sm, 86 | 89 | 120..) {
                1536
            } else {
                2048
            }
        }
        75 => (sm / 10) as i32,
        76 => (sm % 10) as i32,
        81 => 233_472,
        97 => match sm {
            120.. => 101_376,
            90.. => 232_448,
            86 | 89 => 101_376,
            80..90 => 166_912,
            75..80 => 65536,
            _ => 98304,
        },
        115 => 1,
        _ => 0,
    };
    unsafe { *value = found };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) -> i32 {
    ask!("cuDevicePrimaryCtxRetain", 0);
    unsafe { *context = device as usize + 1 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_: usize) -> i32 {
    ask!("cuCtxSetCurrent", 0);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> i32 {
    unsafe { *context = 1 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> i32 {
    unsafe { (*least, *greatest) = (0, -5) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, _: i32, _: i32) -> i32 {
    unsafe { *can = 0 };
    0
}

const ERRORS: [(i32, &CStr, &CStr); 11] = [
    (1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
    (214, c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error encountered"),
    (218, c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain."),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
    (803, c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", c"system has unsupported display driver / cuda driver combination"),
    (999, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: i32, words: *mut *const c_char) -> i32 {
    let found = ERRORS.iter().find(|error| error.0 == code).map_or(c"unrecognized error code", |error| error.2);
    unsafe { *words = found.as_ptr() };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32 {
    let found = ERRORS.iter().find(|error| error.0 == code).map_or(c"CUDA_ERROR", |error| error.1);
    unsafe { *name = found.as_ptr() };
    0
}

// Memory.

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> i32 {
    ask!("cuMemAlloc", bytes);
    match take(bytes, all_memory(), number("STAND_IN_POISON", 1) != 0 && runs()) {
        Some(address) => unsafe { *at = address },
        None => return OUT_OF_MEMORY,
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> i32 {
    give_back(at);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(at: *mut u64, bytes: usize, _: usize) -> i32 {
    unsafe { cuMemAlloc_v2(at, bytes) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(at: u64, _: usize) -> i32 {
    give_back(at);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(at: *mut *mut u8, bytes: usize) -> i32 {
    ask!("cuMemAllocHost", bytes);
    // Leaked at the end, as everything is then.
    let layout = std::alloc::Layout::from_size_align(bytes.max(1) + 64, 64).unwrap();
    unsafe {
        let begin = std::alloc::alloc_zeroed(layout);
        begin.cast::<usize>().write(layout.size());
        *at = begin.add(64);
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut u8) -> i32 {
    unsafe {
        let begin = at.sub(64);
        let size = begin.cast::<usize>().read();
        std::alloc::dealloc(begin, std::alloc::Layout::from_size_align(size, 64).unwrap());
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, _: usize) -> i32 {
    ask!("cuMemcpyHtoDAsync", bytes);
    if !memory::has(to, bytes) {
        return INVALID_VALUE;
    }
    unsafe { std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, _: usize) -> i32 {
    ask!("cuMemcpyDtoHAsync", bytes);
    if !memory::has(from, bytes) {
        return INVALID_VALUE;
    }
    unsafe { tell(to, from as *const u8, bytes) };
    0
}

/// What the device has, to the host.
unsafe fn tell(to: *mut u8, from: *const u8, bytes: usize) {
    if runs() {
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    } else {
        unsafe { to.write_bytes(0, bytes) };
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _: usize) -> i32 {
    ask!("cuMemcpyDtoDAsync", bytes);
    if !memory::has(from, bytes) || !memory::has(to, bytes) {
        return INVALID_VALUE;
    }
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    0
}

#[repr(C)]
pub struct Copy2d {
    from: Side,
    to: Side,
    width: usize,
    height: usize,
}

#[repr(C)]
pub struct Side {
    x: usize,
    y: usize,
    of: i32,
    host: u64,
    device: u64,
    array: usize,
    pitch: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Copy2d, _: usize) -> i32 {
    let copy = unsafe { &*copy };
    ask!("cuMemcpy2DAsync", copy.width * copy.height);
    let place = |side: &Side, row: usize| {
        let base = if side.of == 1 { side.host } else { side.device };
        base + ((row + side.y) * side.pitch + side.x) as u64
    };
    for row in 0..copy.height {
        let (to, from) = (place(&copy.to, row), place(&copy.from, row));
        let (to, from) = (to as *mut u8, from as *const u8);
        if copy.to.of == 1 {
            unsafe { tell(to, from, copy.width) };
        } else {
            unsafe { std::ptr::copy_nonoverlapping(from, to, copy.width) };
        }
    }
    0
}

// Streams and events: all is done when it is asked for, but for kernels that only take their time.

/// The device's clock where kernels are not run, in nanoseconds: what they would take is made up, so that
/// what is timed takes some time, and what copies whole tiles takes the least.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// When the device will have done what it was asked for, in nanoseconds of [`now`].
static DONE: AtomicU64 = AtomicU64::new(0);

fn now() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// One kernel more, behind those that it was asked for before.
fn takes(nanoseconds: u64) {
    let behind = |done: u64| Some(done.max(now()) + nanoseconds);
    let _ = DONE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, behind);
}

fn wait_until(done: u64) {
    let rest = done.saturating_sub(now());
    if rest > 0 {
        std::thread::sleep(Duration::from_nanos(rest));
    }
}

/// When an event was recorded, by the host's clock and by the device's, and what is done before it.
#[derive(Clone, Copy)]
pub struct Moment(Instant, u64, u64);

static HANDLES: AtomicU64 = AtomicU64::new(16);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut u64, _: u32) -> i32 {
    ask!("cuStreamCreate", 0);
    unsafe { *stream = HANDLES.fetch_add(16, Ordering::SeqCst) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut u64, flags: u32, _: i32) -> i32 {
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_: u64) -> i32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_: u64) -> i32 {
    ask!("cuStreamSynchronize", 0);
    wait_until(DONE.load(Ordering::SeqCst));
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(_: u64, _: u64, _: u32) -> i32 {
    ask!("cuStreamWaitEvent", 0);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut Option<Moment>, _: u32) -> i32 {
    unsafe { *event = Box::into_raw(Box::new(None)) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut Option<Moment>) -> i32 {
    drop(unsafe { Box::from_raw(event) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut Option<Moment>, _: u64) -> i32 {
    ask!("cuEventRecord", 0);
    let [clock, done] = [&CLOCK, &DONE].map(|it| it.load(Ordering::SeqCst));
    unsafe { *event = Some(Moment(Instant::now(), clock, done)) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *const Option<Moment>) -> i32 {
    ask!("cuEventSynchronize", 0);
    if let Some(moment) = unsafe { &*event } {
        wait_until(moment.2);
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *const Option<Moment>) -> i32 {
    if unsafe { &*event }.as_ref().is_some_and(|moment| moment.2 > now()) {
        return NOT_READY;
    }
    POISON.load(Ordering::SeqCst)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    ms: *mut f32,
    start: *const Option<Moment>,
    end: *const Option<Moment>,
) -> i32 {
    unsafe {
        let passed = match (*start, *end) {
            (Some(start), Some(end)) if runs() => end.0.saturating_duration_since(start.0).as_secs_f32(),
            (Some(start), Some(end)) => (end.1 - start.1) as f32 * 1e-9,
            _ => 0.0,
        };
        *ms = passed * 1e3;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    ms: *mut f32,
    start: *const Option<Moment>,
    end: *const Option<Moment>,
) -> i32 {
    unsafe { cuEventElapsedTime(ms, start, end) }
}

// Kernels.

/// What a module is known by here, in the place of machine code.
const IMAGE: usize = 64;

static TEXTS: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);

pub struct Link {
    image: [u8; IMAGE],
    log: *mut u8,
    log_bytes: usize,
}

fn runs() -> bool {
    static RUNS: OnceLock<bool> = OnceLock::new();
    *RUNS.get_or_init(|| number("STAND_IN_RUN", 1) != 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkCreate_v2(
    count: u32,
    options: *const i32,
    values: *const usize,
    link: *mut *mut Link,
) -> i32 {
    ask!("cuLinkCreate", 0);
    let mut made = Link { image: [0; IMAGE], log: std::ptr::null_mut(), log_bytes: 0 };
    for place in 0..count as usize {
        let (option, value) = unsafe { (*options.add(place), *values.add(place)) };
        match option {
            5 => made.log = value as *mut u8,
            6 => made.log_bytes = value,
            _ => {}
        }
    }
    unsafe { *link = Box::into_raw(Box::new(made)) };
    0
}

fn hash(text: &str) -> String {
    let mut value = 0xcbf2_9ce4_8422_2325u64;
    for byte in text.bytes() {
        value = (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{value:016x}")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkAddData_v2(
    link: *mut Link,
    _: i32,
    ptx: *const c_char,
    bytes: usize,
    _: *const c_char,
    _: u32,
    _: usize,
    _: usize,
) -> i32 {
    ask!("cuLinkAddData", bytes);
    let link = unsafe { &mut *link };
    let text = unsafe { CStr::from_ptr(ptx) }.to_string_lossy().into_owned();
    let id = hash(&text);
    link.image[..id.len() + 9].copy_from_slice(format!("stand-in {id}").as_bytes());
    let outcome = assembled(&id, &text).and_then(|()| if runs() { ptx::read(&text).map(|_| ()) } else { Ok(()) });
    // The image lasts beyond the process, in a cache; the text has to be found again then.
    TEXTS.lock().unwrap().get_or_insert_default().insert(id.clone(), text);
    match outcome {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("stand-in: {id}: {why}");
            if link.log_bytes > 0 {
                unsafe { say(&why, link.log.cast(), link.log_bytes as i32) };
            }
            INVALID_PTX
        }
    }
}

/// Writes what was to be assembled, and has it assembled.
fn assembled(id: &str, text: &str) -> Result<(), String> {
    let Some(folder) = variable("STAND_IN_PTX") else {
        return Ok(());
    };
    let path = |end: &str| format!("{folder}/{id}.{end}");
    let _ = std::fs::create_dir_all(&folder);
    std::fs::write(path("ptx"), text).map_err(|error| error.to_string())?;
    let Some(ptxas) = variable("STAND_IN_PTXAS") else {
        return Ok(());
    };
    let sm = architecture();
    let done = std::process::Command::new(ptxas)
        .env_remove("LD_LIBRARY_PATH")
        .arg(format!("-arch=sm_{sm}{}", if sm >= 90 { "a" } else { "" }))
        .args(["-v", "-o", &path("cubin"), &path("ptx")])
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let _ = std::fs::write(path("log"), &said);
    if done.status.success() { Ok(()) } else { Err(said) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkComplete(link: *mut Link, image: *mut *const u8, bytes: *mut usize) -> i32 {
    unsafe {
        *image = (*link).image.as_ptr();
        *bytes = IMAGE;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkDestroy(link: *mut Link) -> i32 {
    drop(unsafe { Box::from_raw(link) });
    0
}

pub struct Module {
    kernels: Vec<Arc<ptx::Kernel>>,
}

pub struct Function {
    kernel: Arc<ptx::Kernel>,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut Module, image: *const c_char) -> i32 {
    ask!("cuModuleLoadData", 0);
    let image = unsafe { CStr::from_ptr(image) }.to_string_lossy().into_owned();
    let text = match image.strip_prefix("stand-in ") {
        Some(id) => match TEXTS.lock().unwrap().get_or_insert_default().get(id) {
            Some(text) => text.clone(),
            // Of another process: the PTX comes next.
            None => return INVALID_PTX,
        },
        None => image,
    };
    let kernels = if runs() { ptx::read(&text) } else { ptx::names(&text) };
    match kernels {
        Ok(kernels) => {
            let kernels = kernels.into_iter().map(Arc::new).collect();
            unsafe { *module = Box::into_raw(Box::new(Module { kernels })) };
            0
        }
        Err(_) => INVALID_PTX,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut Module,
    image: *const c_char,
    _: u32,
    _: usize,
    _: usize,
) -> i32 {
    unsafe { cuModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_: usize) -> i32 {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut Function,
    module: *mut Module,
    name: *const c_char,
) -> i32 {
    ask!("cuModuleGetFunction", 0);
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let module = unsafe { &*module };
    match module.kernels.iter().find(|kernel| kernel.name == name) {
        Some(kernel) => {
            let found = Function { kernel: Arc::clone(kernel) };
            unsafe { *function = Box::into_raw(Box::new(found)) };
            0
        }
        None => NOT_FOUND,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(_: usize, _: i32, _: i32) -> i32 {
    ask!("cuFuncSetAttribute", 0);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *const Function,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic: u32,
    _: u64,
    parameters: *const *const u8,
    _: usize,
) -> i32 {
    ask!("cuLaunchKernel", 0);
    let kernel = &unsafe { &*function }.kernel;
    let (blocks, threads) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let in_block: u64 = threads.iter().map(|side| u64::from(*side)).product();
    if blocks.contains(&0) || !(1..=1024).contains(&in_block) || grid_y > 65535 || grid_z > 65535 || block_z > 64 {
        return INVALID_VALUE;
    }
    let mut shared = 0;
    unsafe { cuDeviceGetAttribute(&raw mut shared, 97, 0) };
    if dynamic as usize + kernel.shared > shared as usize {
        return INVALID_VALUE;
    }
    if kernel.threads.is_some_and(|wanted| wanted != threads) {
        return INVALID_VALUE;
    }
    let began = Instant::now();
    CLOCK.fetch_add(if kernel.copies_tiles { 2_000 } else { 5_000 }, Ordering::SeqCst);
    if !runs() {
        static TIME: OnceLock<u64> = OnceLock::new();
        takes(*TIME.get_or_init(|| number("STAND_IN_TIME", 0) as u64));
    }
    // What times the device has nothing to give.
    if runs() && !["throughput", "prime_buffer", "launch_overhead"].iter().any(|word| kernel.name.contains(word)) {
        let mut bytes = vec![0u8; kernel.parameter_bytes];
        for (place, (begin, length)) in kernel.parameters.iter().enumerate() {
            unsafe {
                let source = *parameters.add(place);
                std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr().add(*begin), *length);
            }
        }
        static RACES: OnceLock<Vec<String>> = OnceLock::new();
        let races = RACES.get_or_init(|| {
            variable("STAND_IN_RACES").unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        });
        let start = machine::Start {
            kernel,
            blocks,
            threads,
            dynamic: dynamic as usize,
            parameters: bytes,
            races: races.iter().any(|word| kernel.name.contains(word.as_str())),
        };
        if let Err(why) = machine::run(&start) {
            eprintln!("stand-in: {} {blocks:?} {threads:?}: {why}", kernel.name);
            // It fails behind its start: the next call says so.
            let code = if why.contains("misaligned") {
                716
            } else if why.contains("illegal") {
                700
            } else {
                719
            };
            POISON.store(code, Ordering::SeqCst);
        }
    }
    if began.elapsed().as_secs() > 5 {
        eprintln!("stand-in: {} {blocks:?} {threads:?}: {:.0?}", kernel.name, began.elapsed());
    }
    let mut counts = COUNTS.lock().unwrap();
    let kernels = &mut counts.get_or_insert_default().kernels;
    let count = kernels.entry(kernel.name.clone()).or_default();
    let all: u64 = blocks.iter().map(|side| u64::from(*side)).product::<u64>() * in_block;
    *count = (count.0 + 1, count.1 + all, count.2 + began.elapsed().as_secs_f64());
    drop(counts);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut u64,
    of: i32,
    rank: u32,
    address: u64,
    sizes: *const u64,
    strides: *const u64,
    tile: *const u32,
    _: *const u32,
    interleave: i32,
    swizzle: i32,
    _: i32,
    _: i32,
) -> i32 {
    ask!("cuTensorMapEncodeTiled", 0);
    let element = match of {
        0 => 1,
        1 | 6 | 9 => 2,
        4 | 5 | 8 => 8,
        _ => 4,
    };
    let rank = rank as usize;
    let (sizes, strides, tile) = unsafe {
        (
            std::slice::from_raw_parts(sizes, rank),
            std::slice::from_raw_parts(strides, rank - 1),
            std::slice::from_raw_parts(tile, rank),
        )
    };
    let made =
        if interleave == 0 { tensor::Map::noted(element, address, sizes, strides, tile, swizzle as u32) } else { None };
    match made {
        Some(number) => {
            unsafe {
                std::ptr::write_bytes(map, 0, 16);
                *map = number;
            }
            0
        }
        None => {
            eprintln!(
                "stand-in: no map of {element} bytes at {address:x}, sizes {sizes:?}, strides {strides:?}, \
                 tile {tile:?}, swizzle {swizzle}"
            );
            INVALID_VALUE
        }
    }
}

extern "C" fn report() {
    let Some(path) = variable("STAND_IN_REPORT") else {
        return;
    };
    let counts = COUNTS.lock().unwrap().take().unwrap_or_default();
    let Ok(mut file) = std::fs::File::create(path) else {
        return;
    };
    let _ = writeln!(file, "memory\t{}", memory::MOST.load(Ordering::SeqCst));
    for (name, (times, bytes)) in counts.calls {
        let _ = writeln!(file, "call\t{name}\t{times}\t{bytes}");
    }
    for (name, (times, threads, seconds)) in counts.kernels {
        let _ = writeln!(file, "kernel\t{name}\t{times}\t{threads}\t{seconds:.6}");
    }
}

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = report;
