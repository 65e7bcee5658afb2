//! `[limits]` and `[sandbox]` of a plugin, typed.

use crate::supervisor::isolation::{Resource, ResourceLimits, Sandbox};

use super::error::{Origin, Problems};
use super::tree::{Data, View};

/// From the checked table of a plugin.
pub(super) fn read(plugin: View<'_>, problems: &mut Problems) -> (ResourceLimits, Sandbox) {
    if plugin.section("run").text("kind") == Some("remote") {
        for key in ["limits", "sandbox"] {
            let written = plugin.section(key).entries();
            let mut written = written.filter(|(_, entry)| entry.key_origin != Origin::Default);
            if let Some((_, entry)) = written.next() {
                let message =
                    format!("{key}: a remote plugin is not started by this core; remove it");
                problems.add(&entry.key_origin, message);
            }
        }
    }
    let limits = limits(plugin.section("limits"), problems);
    (limits, sandbox(plugin.section("sandbox"), problems))
}

fn limits(section: View<'_>, problems: &mut Problems) -> ResourceLimits {
    let number = |resource: Resource| {
        let number = section.number(resource.as_str());
        number.and_then(|number| u64::try_from(number).ok())
    };
    let mut limits = ResourceLimits {
        memory: number(Resource::Memory),
        pids: number(Resource::Pids),
        cpu_weight: number(Resource::CpuWeight),
        open_files: number(Resource::OpenFiles),
        required: Vec::new(),
    };
    for (word, origin) in section.texts("required") {
        // A bad value was reported where it stands.
        if section.node(word).is_none() {
            let message = format!("limits.required: there is no limits.{word} to be kept");
            problems.add(origin, message);
        }
        limits.required.extend(Resource::parse(word));
    }
    limits
}

fn sandbox(section: View<'_>, problems: &mut Problems) -> Sandbox {
    let paths = |key| {
        let paths = section.list(key).iter();
        paths
            .filter_map(|node| match &node.data {
                Data::Path(path) => Some(path.clone()),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let (read, write) = (paths("read"), paths("write"));
    let named = !read.is_empty() || !write.is_empty();
    let text = |key| section.text(key).map(str::to_owned);
    let sandbox = Sandbox {
        user: text("user"),
        group: text("group"),
        landlock: section.switch("landlock").unwrap_or(named),
        read,
        write,
        required: section.switch("required").unwrap_or(false),
    };
    if named && !sandbox.landlock {
        let message = "sandbox.landlock: is off, so that the paths of sandbox.read and \
                       sandbox.write mean nothing; remove it, or them";
        problems.add(&section.origin("landlock"), message);
    }
    let asks = sandbox.landlock || sandbox.user.is_some() || sandbox.group.is_some();
    if sandbox.required && !asks {
        let message = "sandbox.required: nothing of it is asked for; set landlock or user";
        problems.add(&section.origin("required"), message);
    }
    sandbox
}
