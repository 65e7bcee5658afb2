//! What a child sees of its surroundings.

use serde_json::{Value, json};

/// All of it.
pub(crate) fn report() -> Value {
    json!({
        "variables": std::env::vars().collect::<std::collections::BTreeMap<_, _>>(),
        "directory": std::env::current_dir().expect("a directory"),
        "pid": std::process::id(),
        "group": rustix::process::getpgrp().as_raw_nonzero().get(),
        "session": rustix::process::getsid(None).map(|id| id.as_raw_nonzero().get()).ok(),
        "umask": umask(),
        "descriptors": descriptors(),
    })
}

/// Read by setting it, as POSIX has it, and set back.
fn umask() -> String {
    let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::process::umask(mask);
    format!("{:03o}", mask.bits())
}

/// What its descriptors are, those of this program's own making (sockets, event queues) left out.
fn descriptors() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with('/') && !target.starts_with("/proc/"))
        .collect()
}
