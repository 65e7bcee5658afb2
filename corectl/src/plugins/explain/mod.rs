//! Why a plugin is as it is, what happens next, and when: from what the core tells to sentences. Pure.
//!
//! Each phase has its paragraph; a phase that this version does not know is told as the core tells it.
//! What the core cannot know ("the cable is out") is not guessed.

#[cfg(test)]
mod tests;

use core_proto::v1::{PluginInfo, PluginKind, PluginState, RestartPolicy};
use jiff::Timestamp;

use super::view::{state_word, why};
use crate::time;

/// How far a chain of "which waits for" is followed.
const LONGEST_CHAIN: usize = 8;
/// Characters of a reason in a list.
const LONGEST_BRIEF: usize = 72;

/// Finds another plugin by its name; nothing where it is not known.
pub(crate) type Find<'a> = &'a dyn Fn(&str) -> Option<&'a PluginInfo>;

/// The sentences, what explains most first.
pub(crate) fn explain(info: &PluginInfo, find: Find<'_>, now: Timestamp) -> Vec<String> {
    let mut said = Vec::new();
    if info.reason == "upgrade_rolled_back" {
        said.push(format!(
            "Its upgrade failed, and the version before it was put back: {}.",
            sentence(&info.message)
        ));
    }
    said.extend(phase(info, find, now));
    said.extend(over_a_limit(info));
    said.extend(remarks(info));
    said
}

/// In one short line, for lists: why, and when it is tried again.
pub(crate) fn brief(info: &PluginInfo, now: Timestamp) -> String {
    let why = match (why(info), last_end(info)) {
        // While it is tried again, what made it fail is what people look for.
        ("", Some(end)) if is_tried_again(info) => format!("tried again after: {end}"),
        (why, _) => why.to_owned(),
    };
    let why = shortened(&why);
    if info.next_attempt_at.is_none() {
        return why;
    }
    let next = format!("next try {}", next_try(info, now));
    match why.is_empty() {
        true => next,
        false => format!("{why}; {next}"),
    }
}

fn is_tried_again(info: &PluginInfo) -> bool {
    let on_its_way = ["spawning", "connecting", "loading", "starting"];
    info.failures > 0 && on_its_way.contains(&info.phase.as_str())
}

/// The first line, as far as a table has room for it; `describe` has the whole.
fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST_BRIEF) {
        Some((cut, _)) => format!("{}…", line[..cut].trim_end()),
        None if text.lines().nth(1).is_some() => format!("{line}…"),
        None => line.to_owned(),
    }
}

fn phase(info: &PluginInfo, find: Find<'_>, now: Timestamp) -> Vec<String> {
    let name = &info.name;
    match info.phase.as_str() {
        "idle" => vec![idle(info)],
        "waiting_dependency" => waiting(info, find, now),
        "waiting_grant" => vec![
            format!("It waits for an operator{}.", because(info)),
            format!(
                "It is loaded by itself as soon as that is granted; `corectl plugins permissions {name}` \
                 shows all that it asks for. It waits for ever, and that costs nothing."
            ),
        ],
        "spawning" if info.reason == "start_slot" => vec![
            "Its turn to start has not come yet: the core starts only a few plugins at a time. \
             Nothing is to be done."
                .to_owned(),
        ],
        "spawning" => vec!["Its process is being started.".to_owned()],
        "connecting" => vec![connecting(info)],
        "loading" => vec![
            "It is being loaded: `on_load` runs. If that fails or takes too long, its run ends and \
             counts as a failure."
                .to_owned(),
        ],
        "starting" => vec![
            "It is starting: `on_start` runs. If that fails or takes too long, its run ends and \
             counts as a failure."
                .to_owned(),
        ],
        "ready" => ready(info, now),
        "degraded" => degraded(info),
        "suspended" => vec![
            "Its channel to the core broke. For a few seconds the same process may open it again \
             and go on as if nothing had happened; calls wait as long as they can. Then its run \
             ends, which counts as a failure."
                .to_owned(),
        ],
        "stopping" => vec![format!(
            "It is being stopped{}: calls in flight may finish, then `on_stop` runs. After a few \
             seconds it is ended whatever it does.",
            because(info)
        )],
        "unloading" if info.reason == "hung" => vec![hung(info)],
        "unloading" => vec![format!(
            "Its run is over{}; what is left of its process is being ended.",
            because(info)
        )],
        "backoff" => backoff(info, now),
        "crash_loop" => crash_loop(info, now),
        "given_up" => given_up(info),
        "config_error" => config_error(info),
        "incompatible" => incompatible(info),
        "completed" => vec![format!(
            "It ended well{}, and its restart policy (`restart.mode = \"{}\"`) says that this was all. \
             `corectl plugins start {name}` runs it again.",
            last_end(info).map_or_else(String::new, |end| format!(" ({end})")),
            policy(info).mode,
        )],
        unknown => vec![format!(
            "It is in phase `{unknown}`, which this corectl does not know{}.",
            because(info)
        )],
    }
}

fn idle(info: &PluginInfo) -> String {
    let name = &info.name;
    match (info.state(), info.desired()) {
        (PluginState::Unloaded, PluginState::Unloaded) => {
            let why = match info.reason.as_str() {
                "not_wanted" | "" => "nobody asked for it".to_owned(),
                _ => sentence(why(info)),
            };
            format!("It does not run: {why}. `corectl plugins start {name}` starts it.")
        }
        (PluginState::Unloaded, PluginState::Stopped) => format!(
            "It does not run, and no process of it is left: {}. `corectl plugins start {name}` starts it.",
            sentence(why(info))
        ),
        (PluginState::Loaded | PluginState::Stopped, PluginState::Stopped) => format!(
            "It was stopped by request; its process stays. `corectl plugins start {name}` starts it."
        ),
        (PluginState::Loaded, PluginState::Loaded) => format!(
            "It is loaded and not started, as asked for. `corectl plugins start {name}` starts it."
        ),
        (state, desired) => format!(
            "It is {} and is wanted {}, and nothing is under way{}.",
            state_word(state),
            state_word(desired),
            because(info)
        ),
    }
}

fn waiting(info: &PluginInfo, find: Find<'_>, now: Timestamp) -> Vec<String> {
    let missing: Vec<_> = info
        .requires
        .iter()
        .filter(|name| find(name).is_none_or(|other| other.state() != PluginState::Started))
        .map(|name| blocked_by(name, find, now, &mut vec![info.name.clone()]))
        .collect();
    if missing.is_empty() {
        return vec![format!(
            "It waits for what it requires{}; that came just now, and it goes on.",
            because(info)
        )];
    }
    let stopped = match info.state() {
        PluginState::Stopped => "It was stopped because what it requires was lost. ",
        _ => "",
    };
    vec![
        format!("{stopped}It waits for {}.", missing.join("; and for ")),
        "It goes on by itself as soon as all it requires is started; waiting counts as no failure \
         and never ends."
            .to_owned(),
    ]
}

/// A plugin that is waited for, and why it is not there: "devices, which waits for radio, which …".
fn blocked_by(name: &str, find: Find<'_>, now: Timestamp, seen: &mut Vec<String>) -> String {
    if seen.iter().any(|before| before == name) {
        return format!("{name}, and so in a circle");
    }
    let Some(info) = find(name) else {
        return format!("{name}, which is not there: no plugin has this name");
    };
    seen.push(name.to_owned());
    let ended = || last_end(info).unwrap_or_else(|| sentence(why(info)));
    let why = match info.phase.as_str() {
        "waiting_dependency" if seen.len() <= LONGEST_CHAIN => {
            let mut next = info
                .requires
                .iter()
                .filter(|next| find(next).is_none_or(|it| it.state() != PluginState::Started));
            match next.next() {
                Some(next) => format!("waits for {}", blocked_by(next, find, now, seen)),
                None => "is about to start".to_owned(),
            }
        }
        _ if info.state() == PluginState::Started => "has just started".to_owned(),
        "idle" if info.desired() != PluginState::Started => format!(
            "is {} by request (`corectl plugins start {name}`)",
            state_word(info.state())
        ),
        "backoff" => format!(
            "failed ({}) and is tried again {}",
            ended(),
            next_try(info, now)
        ),
        "crash_loop" => format!(
            "keeps crashing ({}) and is tried again {}",
            ended(),
            next_try(info, now)
        ),
        "given_up" => format!("failed ({}) and is not tried again", ended()),
        "config_error" => format!("cannot run as it is ({})", sentence(self::why(info))),
        "incompatible" => match info.reason.as_str() {
            "wire_version" => "speaks another version of the wire protocol".to_owned(),
            _ => format!("is refused ({})", sentence(self::why(info))),
        },
        "completed" => "has ended for good".to_owned(),
        "connecting" if info.kind() == PluginKind::Remote => "has not connected yet".to_owned(),
        phase => format!("is {phase}"),
    };
    format!("{name}, which {why}")
}

fn connecting(info: &PluginInfo) -> String {
    match info.kind() {
        PluginKind::Remote => "It has not connected yet. The core waits for it without any deadline: \
                               it is started where it lives, with this core's address and its token."
            .to_owned(),
        _ => "Its process runs and has not opened its channel yet. If it does not do so soon, it is \
              ended, and that counts as a failure."
            .to_owned(),
    }
}

fn ready(info: &PluginInfo, now: Timestamp) -> Vec<String> {
    let since = time::relative(info.since.as_ref(), now);
    let mut said = vec![format!(
        "It runs and has been well for {}.",
        since.trim_end_matches(" ago")
    )];
    if info.failures > 0 {
        said.push(format!(
            "{}; once it has been ready for {} that is forgotten.",
            failures(info),
            length(policy(info).stable_after.as_ref())
        ));
    }
    said
}

fn degraded(info: &PluginInfo) -> Vec<String> {
    if info.reason == "health" {
        let text = sentence(&info.message);
        return vec![
            format!("It runs, and says itself that it is unwell: {text}."),
            "Calls to it go on. It is up to the plugin to say that it is well again.".to_owned(),
        ];
    }
    vec![
        "It does not answer the core's heartbeats. New calls to it are refused at once.".to_owned(),
        "One answer, and it is well again. A plugin that is only busy is not ended; one that stays \
         silent is, and started anew."
            .to_owned(),
    ]
}

fn hung(info: &PluginInfo) -> String {
    let what = match info.kind() {
        PluginKind::Embedded => {
            "its thread does not return, and a thread cannot be ended".to_owned()
        }
        _ if info.pid != 0 => format!("process {} survives even SIGKILL", info.pid),
        _ => "its process survives even SIGKILL".to_owned(),
    };
    format!(
        "It was told to end and has not: {what}. Its next run begins only when nothing is left of \
         this one; usually a device or a file system does not answer the kernel."
    )
}

fn backoff(info: &PluginInfo, now: Timestamp) -> Vec<String> {
    let mut said = Vec::new();
    if info.failures == 0 {
        let end = last_end(info).unwrap_or_else(|| sentence(why(info)));
        said.push(format!(
            "Its run ended ({end}), which counts as no failure."
        ));
    } else {
        said.push(format!("{}.", failures(info)));
    }
    said.push(format!("The core tries again {}.", next_try(info, now)));
    let policy = policy(info);
    if policy.max_failures > 0 && info.failures > 0 {
        let rest = policy.max_failures.saturating_sub(info.failures);
        let then = match policy.give_up {
            true => "it is given up".to_owned(),
            false => format!(
                "the core tries only every {}",
                length(policy.crash_loop_every.as_ref())
            ),
        };
        said.push(format!(
            "After {} more {} without {} of being ready in between {then}.",
            rest.max(1),
            plural(rest.max(1), "failure"),
            length(policy.stable_after.as_ref()),
        ));
    }
    said.push(retry_hint(info));
    said
}

fn crash_loop(info: &PluginInfo, now: Timestamp) -> Vec<String> {
    let every = length(policy(info).crash_loop_every.as_ref());
    vec![
        format!("{}.", failures(info)),
        format!(
            "The core tries again {}, and every {every} after that, for ever.",
            next_try(info, now)
        ),
        retry_hint(info),
    ]
}

fn given_up(info: &PluginInfo) -> Vec<String> {
    let policy = policy(info);
    let rule = match policy.mode.as_str() {
        "never" => "`restart.mode = \"never\"`".to_owned(),
        _ if policy.give_up => format!(
            "`restart.give_up = true` after {} {}",
            policy.max_failures,
            plural(policy.max_failures, "failure")
        ),
        mode => format!("`restart.mode = \"{mode}\"`"),
    };
    vec![
        format!("{}.", failures(info)),
        format!("The core does not try again: {rule}."),
        format!("`corectl plugins start {}` tries now.", info.name),
    ]
}

/// Its handshake is refused, for its version or for whom it comes from.
fn incompatible(info: &PluginInfo) -> Vec<String> {
    let name = &info.name;
    let why = sentence(why(info));
    match info.reason.as_str() {
        "wire_version" => vec![
            format!("It speaks another version of the wire protocol: {why}."),
            "Update the side that is older. It is tried again when its program changes or it \
             connects anew."
                .to_owned(),
        ],
        "identity" => vec![
            format!("It came as another user than the core runs it as: {why}."),
            format!(
                "Its program must open the channel as the user that it is started as. It is tried again \
                 when its program changes; `corectl plugins start {name}` tries now."
            ),
        ],
        _ => vec![
            format!("The core refuses its handshake: {why}."),
            format!(
                "It is tried again when its program changes; `corectl plugins start {name}` tries now."
            ),
        ],
    }
}

fn config_error(info: &PluginInfo) -> Vec<String> {
    let name = &info.name;
    let what = format!("It cannot run as it is: {}.", sentence(why(info)));
    let remedy = match info.reason.as_str() {
        "dependency_cycle" => "Take one of these requirements out; nothing else helps.".to_owned(),
        "not_built_in" => {
            "Build it into the program, or take it out of the configuration.".to_owned()
        }
        _ => format!(
            "The core tries again when the program or its configuration changes; \
             `corectl plugins start {name}` tries now."
        ),
    };
    vec![what, remedy]
}

/// What can be done about a run that took too much.
fn over_a_limit(info: &PluginInfo) -> Option<String> {
    let limit = match info.reason.as_str() {
        "memory_limit" => "memory",
        "pids_limit" => "pids",
        _ => return None,
    };
    Some(format!(
        "It took more than it may have: raise `{limit}` in `[limits]` of its plugin.toml, or find out \
         why it grows."
    ))
}

/// What stands beside the phase and may matter.
fn remarks(info: &PluginInfo) -> Vec<String> {
    let mut said = Vec::new();
    if info.suppressed_lines > 0 {
        said.push(format!(
            "{} {} of its output {} dropped: it writes faster than the core keeps.",
            info.suppressed_lines,
            match info.suppressed_lines {
                1 => "line",
                _ => "lines",
            },
            match info.suppressed_lines {
                1 => "was",
                _ => "were",
            },
        ));
    }
    if !info.config_rejected.is_empty() {
        said.push(format!(
            "It rejected its newest configuration: {}. Configuration {} is still in force.",
            sentence(&info.config_rejected),
            info.config_revision
        ));
    }
    if let Some(isolation) = &info.isolation {
        let notes = isolation.notes.iter().map(|note| sentence(note));
        said.extend(notes.map(|note| format!("Not all of its isolation is in force: {note}.")));
    }
    if !info.log_level.is_empty() {
        said.push(format!(
            "Its log level was set to {0}; `corectl plugins log-level {1} default` sets it back.",
            info.log_level, info.name
        ));
    }
    said
}

/// "It has failed 8 times since it was last stable (exit code 3 each time)".
fn failures(info: &PluginInfo) -> String {
    let count = match info.failures {
        0 => {
            return last_end(info)
                .map_or_else(|| "It failed".to_owned(), |end| format!("It ended ({end})"));
        }
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let counted = usize::try_from(info.failures).unwrap_or(usize::MAX);
    let ends = info.crash_reports.iter().take(counted);
    let ends: Vec<_> = ends
        .filter_map(|report| Some(report.exit.as_ref()?.message.as_str()))
        .collect();
    let alike = ends.len() > 1 && ends.iter().all(|end| *end == ends[0]);
    let how = match last_end(info) {
        Some(end) if alike && ends.len() == counted => format!(" ({end} each time)"),
        Some(end) if alike => format!(" ({end} the last {} times)", ends.len()),
        Some(end) if info.failures > 1 => format!(" (the last time: {end})"),
        Some(end) => format!(" ({end})"),
        None => String::new(),
    };
    format!("It has failed {count} since it was last stable{how}")
}

/// How its last run ended: "exit code 3", "on_start did not end within 30 s, ended by the core".
fn last_end(info: &PluginInfo) -> Option<String> {
    let exit = info.last_exit.as_ref()?;
    let message = sentence(&exit.message);
    (!message.is_empty()).then(|| match exit.forced {
        true => format!("{message}; the core ended it"),
        false => message,
    })
}

fn retry_hint(info: &PluginInfo) -> String {
    format!(
        "`corectl plugins start {}` tries now; so does a change of its program or configuration.",
        info.name
    )
}

/// "in 4m 12s", or "now" once that has passed.
fn next_try(info: &PluginInfo, now: Timestamp) -> String {
    match time::from_wire(info.next_attempt_at.as_ref()) {
        None => "soon".to_owned(),
        Some(at) if at <= now => "now".to_owned(),
        Some(_) => time::relative(info.next_attempt_at.as_ref(), now),
    }
}

/// ": by request", where the core says why.
fn because(info: &PluginInfo) -> String {
    match sentence(why(info)) {
        why if why.is_empty() => String::new(),
        why => format!(" ({why})"),
    }
}

/// A text that goes into a sentence: without a full stop of its own.
fn sentence(text: &str) -> String {
    text.trim().trim_end_matches('.').to_owned()
}

fn length(duration: Option<&prost_types::Duration>) -> String {
    duration.map_or_else(
        || "a while".to_owned(),
        |length| time::short(time::duration(length)),
    )
}

fn plural(count: u32, word: &str) -> String {
    match count {
        1 => word.to_owned(),
        _ => format!("{word}s"),
    }
}

/// The restart policy; a core that does not tell one has the usual one.
fn policy(info: &PluginInfo) -> RestartPolicy {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    info.restart.clone().unwrap_or_else(|| RestartPolicy {
        mode: "always".to_owned(),
        stable_after: seconds(60),
        max_failures: 8,
        crash_loop_every: seconds(300),
        ..RestartPolicy::default()
    })
}
