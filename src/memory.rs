//! What is in memory stays there.

/// Keeps a teacher's key out of core dumps, and out of reach of the user's other processes. Before
/// the key is fetched.
#[cfg(target_os = "linux")]
pub(crate) fn keep_private() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("a core dump of this process would hold its keys: {error}");
    }
}

/// Elsewhere there is nothing to be had without unsafe code.
#[cfg(not(target_os = "linux"))]
pub(crate) fn keep_private() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, dumpable_behavior};

    #[test]
    fn no_core_is_dumped() {
        super::keep_private();
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    }
}
