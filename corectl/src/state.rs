//! `corectl state`: get, set, delete, list, watch.

use core_proto::v1::state_change::Kind;
use core_proto::v1::{
    StateChange, StateEngineDeleteRequest, StateEngineGetRequest, StateEngineListRequest,
    StateEngineSetRequest, StateEngineWatchRequest, StateEngineWatchResponse, StateEntry,
};
use serde::Serialize;

use crate::arguments;
use crate::cli::{Global, StateCommand, ValueArgs, WatchArgs};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Table, Tone, now};
use crate::text::nearest;
use crate::time;
use crate::watching::{follow, left_out};

/// Entries in one answer; the most that the contract allows.
const PAGE_SIZE: u32 = 1000;

/// The JSON shape of an entry.
#[derive(Debug, Serialize)]
struct EntryView {
    key: String,
    value: Payload,
    revision: u64,
    writer: String,
    changed_at: Option<String>,
    reported_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    owned: bool,
    stale: bool,
}

/// The JSON shape of a line of `state watch`. `value` is absent for a deletion, `old_value` where
/// there was none.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "change")]
struct ChangeView {
    kind: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Payload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_value: Option<Payload>,
    revision: u64,
    writer: String,
    cause: String,
    conflated: bool,
    changed_at: Option<String>,
    reported_at: Option<String>,
}

/// The JSON shape of a write.
#[derive(Debug, Serialize)]
struct WrittenView<'a> {
    key: &'a str,
    revision: u64,
    changed: bool,
}

/// The JSON shape of a removal.
#[derive(Debug, Serialize)]
struct DeletedView<'a> {
    key: &'a str,
    existed: bool,
}

impl From<StateEntry> for EntryView {
    fn from(entry: StateEntry) -> Self {
        Self {
            key: entry.key,
            value: Payload::json(&entry.value),
            revision: entry.revision,
            writer: entry.writer,
            changed_at: time::rfc3339(entry.changed_at.as_ref()),
            reported_at: time::rfc3339(entry.reported_at.as_ref()),
            expires_at: time::rfc3339(entry.expires_at.as_ref()),
            owned: entry.owned,
            stale: entry.stale,
        }
    }
}

/// Runs a command of this group.
pub(crate) async fn run(
    global: &Global,
    command: &StateCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        StateCommand::Get { key } => get(&Core::connect(global).await?, key, output).await,
        StateCommand::Set { key, value } => {
            let bytes = arguments::of_value(value)?;
            set(&Core::connect(global).await?, key, value, bytes, output).await
        }
        StateCommand::Delete { key, if_revision } => {
            delete(&Core::connect(global).await?, key, *if_revision, output).await
        }
        StateCommand::List { prefix } => {
            let core = Core::connect(global).await?;
            list(&core, prefix.as_deref().unwrap_or(""), output).await
        }
        StateCommand::Watch(watch) => {
            self::watch(&Core::connect(global).await?, watch, output).await
        }
    }
}

async fn get(core: &Core, key: &str, output: &mut Output) -> Result<(), Failure> {
    let question = StateEngineGetRequest {
        key: key.to_owned(),
    };
    let mut client = core.state();
    let response = core
        .ask("", UNARY_TIMEOUT, question, |request| client.get(request))
        .await?;
    let Some(entry) = response.entry else {
        return Err(Failure::NotFound {
            what: format!("state key {key:?}"),
            hint: suggestion(core, key).await,
        });
    };
    match output.form() {
        Form::Json => output.json(&EntryView::from(entry)),
        Form::Table | Form::Quiet => output.data(&entry.value),
    }
}

/// "did you mean" among the keys that begin with the same token. Best effort.
async fn suggestion(core: &Core, key: &str) -> String {
    let token = key.split('.').next().unwrap_or("");
    let near: String = token.chars().take(1).collect();
    let page = page(core, &near, String::new()).await;
    let entries = page.map(|page| page.entries).unwrap_or_default();
    let meant = nearest(key, entries.iter().map(|entry| entry.key.as_str()));
    meant.map_or_else(
        || "`corectl state list` shows the keys".to_owned(),
        |meant| format!("did you mean {meant:?}?"),
    )
}

async fn set(
    core: &Core,
    key: &str,
    value: &ValueArgs,
    bytes: Vec<u8>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = StateEngineSetRequest {
        key: key.to_owned(),
        value: bytes.into(),
        if_revision: value.if_revision,
        ttl: time::to_wire_duration(value.ttl),
        ..Default::default()
    };
    let mut client = core.state();
    let written = core
        .ask("", UNARY_TIMEOUT, question, |request| client.set(request))
        .await?;
    match output.form() {
        Form::Json => output.json(&WrittenView {
            key,
            revision: written.revision,
            changed: written.changed,
        }),
        Form::Quiet => Ok(()),
        Form::Table => {
            let word = if written.changed { "" } else { "unchanged" };
            let revision = format!("revision {}", written.revision);
            output.cells(&[key.into(), revision.into(), word.into()])
        }
    }
}

async fn delete(
    core: &Core,
    key: &str,
    if_revision: Option<u64>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = StateEngineDeleteRequest {
        key: key.to_owned(),
        if_revision,
    };
    let mut client = core.state();
    let existed = core
        .ask("", UNARY_TIMEOUT, question, |request| {
            client.delete(request)
        })
        .await?
        .existed;
    match output.form() {
        Form::Json => output.json(&DeletedView { key, existed }),
        Form::Quiet => Ok(()),
        Form::Table => {
            let word = if existed { "deleted" } else { "was not there" };
            output.cells(&[key.into(), word.into()])
        }
    }
}

async fn page(
    core: &Core,
    prefix: &str,
    page_token: String,
) -> Result<core_proto::v1::StateEngineListResponse, Failure> {
    let question = StateEngineListRequest {
        prefix: prefix.to_owned(),
        page_size: PAGE_SIZE,
        page_token,
    };
    let mut client = core.state();
    core.ask("", UNARY_TIMEOUT, question, |request| client.list(request))
        .await
}

async fn list(core: &Core, prefix: &str, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List {
        entries: Vec<EntryView>,
        revision: u64,
    }
    let mut revision = 0;
    let entries = Core::all_pages(async |page_token| {
        let page = page(core, prefix, page_token).await?;
        revision = page.revision;
        Ok((page.entries, page.next_page_token))
    })
    .await?;
    match output.form() {
        Form::Json => output.json(&List {
            entries: entries.into_iter().map(EntryView::from).collect(),
            revision,
        }),
        Form::Quiet => entries.iter().try_for_each(|entry| output.line(&entry.key)),
        Form::Table => {
            let now = now();
            let mut table = Table::new(["KEY", "REVISION", "WRITER", "CHANGED", "VALUE"]);
            for entry in &entries {
                table.row([
                    Cell::from(&entry.key),
                    entry.revision.to_string().into(),
                    Cell::from(&entry.writer),
                    stale_or_when(entry, now),
                    Payload::json(&entry.value).line("").into(),
                ]);
            }
            output.table(&table, "no keys")
        }
    }
}

/// Since when the value is so; of a stale one that nobody knows whether it still is.
fn stale_or_when(entry: &StateEntry, now: jiff::Timestamp) -> Cell {
    let when = time::relative(entry.changed_at.as_ref(), now);
    if entry.stale {
        Cell::new(&format!("{when}, stale"), Tone::Waiting)
    } else {
        when.into()
    }
}

async fn watch(core: &Core, watch: &WatchArgs, output: &mut Output) -> Result<(), Failure> {
    let question = StateEngineWatchRequest {
        patterns: if watch.patterns.is_empty() {
            vec![">".to_owned()]
        } else {
            watch.patterns.clone()
        },
        include_initial: !watch.changes_only,
        include_reports: watch.reports,
    };
    let mut client = core.state();
    let stream = core.open("", client.watch(question)).await?;
    let told = |response: StateEngineWatchResponse| {
        let end = response.snapshot_end.then_some(response.revision);
        (response.changes, end)
    };
    follow(core, stream, watch.count, output, told, show_change).await
}

fn show_change(change: StateChange, output: &mut Output) -> Result<(), Failure> {
    let (kind, tone) = match change.kind() {
        Kind::Unspecified => ("unknown", Tone::Plain),
        Kind::Initial => ("initial", Tone::Faint),
        Kind::Set => ("set", Tone::Good),
        Kind::Deleted => ("deleted", Tone::Bad),
        Kind::Reported => ("reported", Tone::Faint),
        Kind::Stale => ("stale", Tone::Waiting),
        Kind::Live => ("live", Tone::Good),
        Kind::Expired => ("expired", Tone::Bad),
    };
    let deleted = matches!(change.kind(), Kind::Deleted | Kind::Expired);
    let entry = change.entry.unwrap_or_default();
    let present = |bytes: &[u8]| (!bytes.is_empty()).then(|| Payload::json(bytes));
    match output.form() {
        Form::Json => output.json(&ChangeView {
            kind,
            value: (!deleted).then(|| Payload::json(&entry.value)),
            old_value: present(&change.old_value),
            revision: entry.revision,
            cause: change.cause,
            conflated: change.conflated,
            changed_at: time::rfc3339(entry.changed_at.as_ref()),
            reported_at: time::rfc3339(entry.reported_at.as_ref()),
            key: entry.key,
            writer: entry.writer,
        }),
        Form::Quiet => output.line(&entry.key),
        Form::Table => {
            let was = present(&change.old_value)
                .map(|old| format!("was {}", old.line("")))
                .unwrap_or_default();
            output.cells(&[
                Cell::new(&time::clock(entry.reported_at.as_ref()), Tone::Faint),
                Cell::new(&format!("{kind:<8}"), tone),
                Cell::new(&entry.key, Tone::Heading),
                Payload::json(&entry.value).line("").into(),
                Cell::new(&was, Tone::Faint),
                Cell::new(&format!("by {}", entry.writer), Tone::Faint),
                left_out(change.conflated),
            ])
        }
    }
}
