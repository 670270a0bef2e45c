//! Takes from a process what loading a model does not need: other files, sockets, other programs, other processes.
//!
//! A model file cannot ask for any of these, because the scan refuses what could. This is for what the scan and ONNX
//! Runtime do not know of themselves. Landlock keeps the process from files, a seccomp filter from system calls; what
//! the kernel does not have is left out and told, because an old kernel is no reason to serve nothing.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a process was kept from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Why it is not kept from files that are none of the version's; nothing if it is.
    pub files: Option<String>,
    /// Why it is not kept from sockets, programs and processes; nothing if it is.
    pub calls: Option<String>,
}

/// `kept from other files, sockets and programs`, or what it is not kept from, and why.
impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.files, &self.calls) {
            (None, None) => f.write_str("kept from other files, sockets and programs"),
            (Some(why), None) => write!(f, "kept from sockets and programs, not from other files: {why}"),
            (None, Some(why)) => write!(f, "kept from other files, not from sockets and programs: {why}"),
            (Some(files), Some(calls)) => {
                write!(f, "not kept from other files ({files}), nor from sockets and programs ({calls})")
            }
        }
    }
}

/// Keeps the calling thread, and every thread it starts from now on, from all files but those in `folder` and from sockets,
/// programs and processes. What was opened before stays open, so the ONNX Runtime is to be loaded before.
#[must_use]
pub fn confine(folder: &Path) -> Confinement {
    Confinement { files: system::leave_files(folder).err(), calls: system::leave_calls().err() }
}

#[cfg(target_os = "linux")]
mod system {
    use std::collections::BTreeMap;
    use std::path::Path;

    use landlock::{
        ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, path_beneath_rules,
    };
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    /// The newest rules that are asked for: the first with those for TCP. An older kernel keeps to those it has.
    const RULES: ABI = ABI::V4;

    /// What tells the process how much memory it had at most.
    const OWN_STATUS: &str = "/proc/self/status";

    /// Calls that open a way out: sockets (and `io_uring`, which opens them by itself), programs, other processes.
    const DENIED: [i64; 10] = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_io_uring_setup,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
    ];

    pub(super) fn leave_files(folder: &Path) -> Result<(), String> {
        let status = restrict(folder).map_err(|error| error.to_string())?;
        if status == RulesetStatus::NotEnforced { Err("this kernel has no Landlock".to_owned()) } else { Ok(()) }
    }

    fn restrict(folder: &Path) -> Result<RulesetStatus, landlock::RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let rules = Ruleset::default().handle_access(AccessFs::from_all(RULES))?;
        let rules = rules.handle_access(AccessNet::from_all(RULES))?.create()?;
        let rules = rules.add_rules(path_beneath_rules([folder, Path::new(OWN_STATUS)], read))?;
        Ok(rules.restrict_self()?.ruleset)
    }

    pub(super) fn leave_calls() -> Result<(), String> {
        filter().and_then(|filter| seccompiler::apply_filter(&filter).map_err(|error| error.to_string()))
    }

    pub(super) fn filter() -> Result<BpfProgram, String> {
        let rules: BTreeMap<i64, _> = DENIED.into_iter().map(|call| (call, Vec::new())).collect();
        let arch = std::env::consts::ARCH.try_into().map_err(|_| "no filter for this processor".to_owned())?;
        let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
        filter.and_then(TryInto::try_into).map_err(|error| error.to_string())
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::path::Path;

    const NO_MEANS: &str = "this system has no means for it";

    pub(super) fn leave_files(_folder: &Path) -> Result<(), String> {
        Err(NO_MEANS.to_owned())
    }

    pub(super) fn leave_calls() -> Result<(), String> {
        Err(NO_MEANS.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_filter_looks_for_every_way_out() {
        let filter = system::filter().unwrap();
        let looks_for = |call: i64| filter.iter().any(|line| i64::from(line.k) == call);
        let ways_out = [
            ("socket", libc::SYS_socket),
            ("socketpair", libc::SYS_socketpair),
            ("connect", libc::SYS_connect),
            ("bind", libc::SYS_bind),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("execve", libc::SYS_execve),
            ("execveat", libc::SYS_execveat),
            ("ptrace", libc::SYS_ptrace),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("process_vm_writev", libc::SYS_process_vm_writev),
        ];
        for (name, call) in ways_out {
            assert!(looks_for(call), "{name}");
        }
        assert!(!looks_for(libc::SYS_openat), "what a number of no such call looks like");
    }

    #[test]
    fn what_a_process_is_not_kept_from_is_told() {
        let told = |files: Option<&str>, calls: Option<&str>| {
            Confinement { files: files.map(Into::into), calls: calls.map(Into::into) }.to_string()
        };
        assert_eq!(told(None, None), "kept from other files, sockets and programs");
        assert_eq!(told(Some("old"), None), "kept from sockets and programs, not from other files: old");
        assert_eq!(told(None, Some("old")), "kept from other files, not from sockets and programs: old");
        assert!(told(Some("a"), Some("b")).starts_with("not kept from other files (a), nor"));
    }
}
