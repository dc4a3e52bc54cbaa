//! What an error means to a shell or a scheduler.

use std::error::Error;
use std::io::ErrorKind;

use retort_data::Error as DataError;
use retort_export::Error as ExportError;
use retort_hub::Error as HubError;
use retort_label::Error as LabelError;
use retort_model::Error as ModelError;
use retort_trainer::Error as TrainerError;

const FAILED: u8 = 1;
const BAD_DATA: u8 = 65;
const SERVICE_GONE: u8 = 69;
const INTERNAL: u8 = 70;
const IO: u8 = 74;
const TRANSIENT: u8 = 75;
const AUTHENTICATION: u8 = 77;
const CONFIGURATION: u8 = 78;
const NOT_GOOD_ENOUGH: u8 = 80;
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Prints the error and its causes to stderr and returns its exit code.
#[expect(clippy::print_stderr, reason = "the one place that prints an error")]
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    error.chain().find_map(code).unwrap_or(FAILED)
}

/// The code of an error that has one of its own.
fn code(error: &(dyn Error + 'static)) -> Option<u8> {
    let data = || error.downcast_ref().map(of_data);
    let trainer = || error.downcast_ref().map(of_trainer);
    let model = || error.downcast_ref().map(of_model);
    let export = || error.downcast_ref().map(of_export);
    let hub = || error.downcast_ref().map(of_hub);
    let label = || error.downcast_ref().map(of_label);
    let io = || error.downcast_ref().map(of_io);
    data()
        .or_else(trainer)
        .or_else(model)
        .or_else(export)
        .or_else(hub)
        .or_else(label)
        .or_else(io)
}

fn of_data(error: &DataError) -> u8 {
    match error {
        DataError::Io(error) => of_io(error),
        DataError::Row { .. } | DataError::File { .. } => BAD_DATA,
        DataError::Setting(_) => CONFIGURATION,
        _ => FAILED,
    }
}

fn of_label(error: &LabelError) -> u8 {
    match error {
        LabelError::Io(error) => of_io(error),
        LabelError::Data(error) => of_data(error),
        LabelError::File { .. } | LabelError::Conflict { .. } => BAD_DATA,
        LabelError::Ledger { .. } => IO,
        LabelError::Locked { .. }
        | LabelError::Gone { .. }
        | LabelError::Pending { .. }
        | LabelError::Unlabelled { passing: true, .. } => TRANSIENT,
        LabelError::Setting(_) | LabelError::Preflight { .. } => CONFIGURATION,
        LabelError::Authentication { .. } => AUTHENTICATION,
        LabelError::Teacher { .. } | LabelError::Budget { .. } => SERVICE_GONE,
        LabelError::NotGoodEnough { .. } => NOT_GOOD_ENOUGH,
        LabelError::Interrupted { signal, .. } => match *signal {
            "SIGTERM" => TERMINATED,
            _ => INTERRUPTED,
        },
        _ => FAILED,
    }
}

fn of_trainer(error: &TrainerError) -> u8 {
    match error {
        TrainerError::Io(error) => of_io(error),
        TrainerError::Data(error) => of_data(error),
        TrainerError::Model(error) => of_model(error),
        TrainerError::Setting { .. } | TrainerError::OutOfMemory { .. } => CONFIGURATION,
        TrainerError::Run { .. } | TrainerError::Changed { .. } => BAD_DATA,
        TrainerError::NotFinite { .. } => INTERNAL,
        TrainerError::Busy { .. } => TRANSIENT,
        _ => FAILED,
    }
}

fn of_model(error: &ModelError) -> u8 {
    match error {
        ModelError::Io(error) => of_io(error),
        ModelError::UnknownDevice(_)
        | ModelError::DeviceNotBuilt { .. }
        | ModelError::DeviceNotFound { .. }
        | ModelError::DeviceNotOpened { .. }
        | ModelError::OldDriver { .. }
        | ModelError::TooFewDevices { .. }
        | ModelError::NoLibdevice
        | ModelError::OutOfMemory { .. }
        | ModelError::Precision { .. }
        | ModelError::Attention { .. }
        | ModelError::Layers { .. } => CONFIGURATION,
        ModelError::Device { .. } => TRANSIENT,
        _ => BAD_DATA,
    }
}

fn of_export(error: &ExportError) -> u8 {
    match error {
        ExportError::Io(error) => of_io(error),
        ExportError::Model(error) => of_model(error),
        ExportError::File { .. } => BAD_DATA,
        _ => FAILED,
    }
}

fn of_hub(error: &HubError) -> u8 {
    match error {
        HubError::File(error) => of_io(error),
        HubError::NotFetched { .. } => TRANSIENT,
        HubError::NoSuchFolder { .. } | HubError::DamagedCache { .. } => BAD_DATA,
        _ => CONFIGURATION,
    }
}

fn of_io(error: &std::io::Error) -> u8 {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::InvalidData => BAD_DATA,
        _ => IO,
    }
}
