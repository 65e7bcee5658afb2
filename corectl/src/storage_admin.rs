//! `corectl storage`: watch, usage, quota, drop, backup, check, export, import.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use core_proto::v1::storage_change::Kind;
use core_proto::v1::{
    StorageAdminBackupRequest, StorageAdminCheckRequest, StorageAdminDropNamespaceRequest,
    StorageAdminExportRequest, StorageAdminImportRequest, StorageAdminListNamespacesRequest,
    StorageAdminSetQuotaRequest, StorageChange, StorageNamespaceUsage, StorageOwnerUsage,
    StorageUsageRequest, StorageWatchRequest, StorageWatchResponse,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::address::Address;
use crate::cli::{StorageCommand, StorageWatchArgs};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Table, Tone, note};
use crate::time;
use crate::watching::{follow, left_out};

/// What takes long gets so long, without `--timeout`.
const LONG: Duration = Duration::from_secs(3_600);
/// Lines of an import that are sent at once; the contract allows 1 MiB.
const IMPORT_BYTES: usize = 512 << 10;
/// Messages of an import on their way.
const IMPORT_AHEAD: usize = 2;

/// The JSON shape of what a namespace holds.
#[derive(Debug, Serialize)]
struct UsageView {
    namespace: String,
    keys: u64,
    bytes: u64,
    max_keys: u64,
    max_bytes: u64,
    /// A core that does not tell it is older.
    owner: Option<OwnerView>,
}

/// The JSON shape of what all namespaces of an owner hold together.
#[derive(Debug, Serialize)]
struct OwnerView {
    name: String,
    namespaces: u64,
    keys: u64,
    bytes: u64,
    max_keys: u64,
    max_bytes: u64,
}

impl From<StorageOwnerUsage> for OwnerView {
    fn from(owner: StorageOwnerUsage) -> Self {
        Self {
            name: owner.name,
            namespaces: owner.namespaces,
            keys: owner.keys,
            bytes: owner.bytes,
            max_keys: owner.max_keys,
            max_bytes: owner.max_bytes,
        }
    }
}

/// The same in words.
fn together(owner: &StorageOwnerUsage) -> String {
    format!(
        "{}: {} of {} keys, {} of {} bytes",
        owner.name,
        owner.keys,
        limit(owner.max_keys),
        owner.bytes,
        limit(owner.max_bytes)
    )
}

impl From<StorageNamespaceUsage> for UsageView {
    fn from(usage: StorageNamespaceUsage) -> Self {
        Self {
            owner: usage.owner.map(OwnerView::from),
            namespace: usage.namespace,
            keys: usage.keys,
            bytes: usage.bytes,
            max_keys: usage.max_keys,
            max_bytes: usage.max_bytes,
        }
    }
}

/// The JSON shape of a line of `storage watch`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "change")]
struct ChangeView {
    kind: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Payload>,
    revision: u64,
    conflated: bool,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// Runs one of these commands.
pub(crate) async fn run(
    core: &Core,
    command: &StorageCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        StorageCommand::Watch(args) => watch(core, args, output).await,
        StorageCommand::Usage { namespace } => usage(core, namespace.as_deref(), output).await,
        StorageCommand::Quota {
            namespace,
            keys,
            bytes,
        } => quota(core, namespace, *keys, *bytes, output).await,
        StorageCommand::Drop { namespace, yes } => drop_all(core, namespace, *yes, output).await,
        StorageCommand::Backup { path } => backup(core, path.as_deref(), output).await,
        StorageCommand::Check => check(core, output).await,
        StorageCommand::Export { namespace } => export(core, namespace.as_deref(), output).await,
        StorageCommand::Import { file } => import(core, file, output).await,
        StorageCommand::Get { .. }
        | StorageCommand::Set { .. }
        | StorageCommand::Delete { .. }
        | StorageCommand::List { .. } => unreachable!("`storage` runs these itself"),
    }
}

async fn watch(core: &Core, args: &StorageWatchArgs, output: &mut Output) -> Result<(), Failure> {
    let question = StorageWatchRequest {
        namespace: args.namespace.clone(),
        prefixes: args.prefixes.clone(),
        from: None,
        include_initial: !args.changes_only,
    };
    let mut client = core.storage();
    let stream = core.open("", client.watch(question)).await?;
    let told = |response: StorageWatchResponse| {
        let revision = response.cursor.unwrap_or_default().revision;
        (response.changes, response.snapshot_end.then_some(revision))
    };
    follow(core, stream, args.count, output, told, show_change).await
}

fn show_change(change: StorageChange, output: &mut Output) -> Result<(), Failure> {
    let (kind, tone) = match change.kind() {
        Kind::Unspecified => ("unknown", Tone::Plain),
        Kind::Initial => ("initial", Tone::Faint),
        Kind::Put => ("put", Tone::Good),
        Kind::Deleted => ("deleted", Tone::Bad),
        Kind::Expired => ("expired", Tone::Bad),
    };
    let gone = matches!(change.kind(), Kind::Deleted | Kind::Expired);
    let entry = change.entry.unwrap_or_default();
    match output.form() {
        Form::Json => output.json(&ChangeView {
            kind,
            value: (!gone).then(|| Payload::json(&entry.value)),
            revision: entry.revision,
            conflated: change.conflated,
            updated_at: time::rfc3339(entry.updated_at.as_ref()),
            expires_at: time::rfc3339(entry.expires_at.as_ref()),
            key: entry.key,
        }),
        Form::Quiet => output.line(&entry.key),
        Form::Table => {
            let revision = format!("revision {}", entry.revision);
            let value = if gone {
                String::new()
            } else {
                Payload::json(&entry.value).line("")
            };
            output.cells(&[
                Cell::new(&format!("{kind:<8}"), tone),
                Cell::new(&entry.key, Tone::Heading),
                value.into(),
                Cell::new(&revision, Tone::Faint),
                left_out(change.conflated),
            ])
        }
    }
}

async fn usage(core: &Core, namespace: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List {
        namespaces: Vec<UsageView>,
    }
    let found = match namespace {
        Some(namespace) => {
            let question = StorageUsageRequest {
                namespace: namespace.to_owned(),
            };
            let mut client = core.storage();
            let answer = core
                .ask("", UNARY_TIMEOUT, question, |request| client.usage(request))
                .await?;
            answer.usage.into_iter().collect()
        }
        None => {
            Core::all_pages(async |page_token| {
                let question = StorageAdminListNamespacesRequest {
                    page_token,
                    ..Default::default()
                };
                let mut client = core.storage_admin();
                let page = core
                    .ask("", UNARY_TIMEOUT, question, |request| {
                        client.list_namespaces(request)
                    })
                    .await?;
                Ok((page.namespaces, page.next_page_token))
            })
            .await?
        }
    };
    match output.form() {
        Form::Json => output.json(&List {
            namespaces: found.into_iter().map(UsageView::from).collect(),
        }),
        Form::Quiet => found
            .iter()
            .try_for_each(|usage| output.line(&usage.namespace)),
        Form::Table => {
            let mut table = Table::new(["NAMESPACE", "KEYS", "OF", "BYTES", "OF", "OWNER"]);
            for usage in &found {
                table.row([
                    Cell::from(&usage.namespace),
                    usage.keys.to_string().into(),
                    limit(usage.max_keys).into(),
                    usage.bytes.to_string().into(),
                    limit(usage.max_bytes).into(),
                    usage
                        .owner
                        .as_ref()
                        .map_or_else(String::new, together)
                        .into(),
                ]);
            }
            output.table(&table, "nothing is stored")
        }
    }
}

fn limit(most: u64) -> String {
    if most == u64::MAX {
        "-".to_owned()
    } else {
        most.to_string()
    }
}

async fn quota(
    core: &Core,
    namespace: &str,
    keys: Option<u64>,
    bytes: Option<u64>,
    output: &mut Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct View<'a> {
        namespace: &'a str,
        max_keys: u64,
        max_bytes: u64,
        owner: Option<OwnerView>,
    }
    let question = StorageAdminSetQuotaRequest {
        namespace: namespace.to_owned(),
        max_keys: keys,
        max_bytes: bytes,
    };
    let mut client = core.storage_admin();
    let set = core
        .ask("", UNARY_TIMEOUT, question, |request| {
            client.set_quota(request)
        })
        .await?;
    match output.form() {
        Form::Json => output.json(&View {
            namespace,
            max_keys: set.max_keys,
            max_bytes: set.max_bytes,
            owner: set.owner.map(OwnerView::from),
        }),
        Form::Quiet => Ok(()),
        Form::Table => {
            output.cells(&[
                namespace.into(),
                format!("{} keys", limit(set.max_keys)).into(),
                format!("{} bytes", limit(set.max_bytes)).into(),
            ])?;
            match &set.owner {
                // Its own bounds are those of all below it.
                Some(owner) if owner.name != namespace => output.cells(&[
                    Cell::new("all of its owner together", Tone::Faint),
                    together(owner).into(),
                ]),
                _ => Ok(()),
            }
        }
    }
}

async fn drop_all(
    core: &Core,
    namespace: &str,
    yes: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct View<'a> {
        namespace: &'a str,
        removed: u64,
    }
    if !yes {
        return Err(Failure::Usage {
            message: format!("this would remove all that namespace {namespace:?} holds"),
            hint: format!("`corectl storage drop {namespace} --yes` does it"),
        });
    }
    let question = StorageAdminDropNamespaceRequest {
        namespace: namespace.to_owned(),
    };
    let mut client = core.storage_admin();
    let dropped = core
        .ask("", LONG, question, |request| client.drop_namespace(request))
        .await?;
    let removed = dropped.removed;
    match output.form() {
        Form::Json => output.json(&View { namespace, removed }),
        Form::Quiet => Ok(()),
        Form::Table => output.cells(&[namespace.into(), format!("{removed} keys removed").into()]),
    }
}

async fn backup(core: &Core, path: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let question = StorageAdminBackupRequest {
        path: path.unwrap_or_default().to_owned(),
        home: false,
    };
    make_backup(core, question, output).await
}

/// `corectl backup [FILE]`.
pub(crate) async fn backup_home(
    core: &Core,
    file: Option<&Path>,
    output: &mut Output,
) -> Result<(), Failure> {
    let path = match (file, core.address()) {
        // The core is on this machine and may have been started elsewhere on it.
        (Some(file), Address::Unix(_)) => std::path::absolute(file)
            .map_err(|error| Failure::io("find the working directory", error))?,
        (Some(file), Address::Tcp { .. }) => file.to_owned(),
        (None, _) => PathBuf::new(),
    };
    let question = StorageAdminBackupRequest {
        path: path.display().to_string(),
        home: true,
    };
    make_backup(core, question, output).await?;
    output.flush()?;
    if output.form() == Form::Table {
        note(
            "it holds the CA's key and the hashes of all credentials: keep it where nobody else reads it",
        );
    }
    Ok(())
}

async fn make_backup(
    core: &Core,
    question: StorageAdminBackupRequest,
    output: &mut Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct View {
        path: String,
        bytes: u64,
        sha256: String,
        revision: u64,
        seconds: f64,
    }
    let mut client = core.storage_admin();
    let made = core
        .ask("", LONG, question, |request| client.backup(request))
        .await?;
    let took = made.took.unwrap_or_default();
    match output.form() {
        Form::Json => output.json(&View {
            path: made.path,
            bytes: made.bytes,
            sha256: made.sha256,
            revision: made.revision,
            seconds: time::seconds(&took),
        }),
        Form::Quiet => output.line(&made.path),
        Form::Table => output.cells(&[
            Cell::from(&made.path),
            format!("{} bytes", made.bytes).into(),
            format!("revision {}", made.revision).into(),
            format!("in {}", time::short(time::duration(&took))).into(),
        ]),
    }
}

async fn check(core: &Core, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct View<'a> {
        findings: &'a [String],
    }
    let mut client = core.storage_admin();
    let checked = core
        .ask("", LONG, StorageAdminCheckRequest {}, |request| {
            client.check(request)
        })
        .await?;
    let findings = &checked.findings;
    match output.form() {
        Form::Json => output.json(&View { findings })?,
        Form::Quiet | Form::Table => {
            findings
                .iter()
                .try_for_each(|finding| output.line(finding))?;
        }
    }
    if !findings.is_empty() {
        return Err(Failure::ChecksFailed("the store is damaged".to_owned()));
    }
    match output.form() {
        Form::Table => output.line("the store is whole"),
        Form::Json | Form::Quiet => Ok(()),
    }
}

async fn export(core: &Core, namespace: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let question = StorageAdminExportRequest {
        namespace: namespace.unwrap_or_default().to_owned(),
    };
    let mut client = core.storage_admin();
    let mut stream = core.open("", client.export(question)).await?;
    while let Some(piece) = core.next("", &mut stream).await? {
        let lines = piece.lines.strip_suffix(b"\n").unwrap_or(&piece.lines);
        output.data(lines)?;
    }
    output.flush()
}

async fn import(core: &Core, file: &Path, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct View {
        entries: u64,
        expired: u64,
    }
    let (sender, receiver) = mpsc::channel(IMPORT_AHEAD);
    let file = file.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_lines(&file, &sender));
    let mut client = core.storage_admin();
    let requests = ReceiverStream::new(receiver);
    let mut stream = core.open("", client.import(requests)).await?;
    let mut last = View {
        entries: 0,
        expired: 0,
    };
    while let Some(progress) = core.next("", &mut stream).await? {
        last.entries = progress.entries;
        last.expired = progress.expired;
        if output.form() == Form::Table && output.is_terminal() {
            note(&format!("{} entries", last.entries));
        }
    }
    reading.await.map_err(|error| Failure::Io {
        doing: "read the lines".to_owned(),
        cause: std::io::Error::other(error),
    })??;
    match output.form() {
        Form::Json => output.json(&last),
        Form::Quiet => Ok(()),
        Form::Table => output.cells(&[
            format!("{} entries written", last.entries).into(),
            format!("{} left out: their time has passed", last.expired).into(),
        ]),
    }
}

/// Reads whole lines, some at once, for as long as somebody takes them.
fn read_lines(
    file: &Path,
    sender: &mpsc::Sender<StorageAdminImportRequest>,
) -> Result<(), Failure> {
    let failed = |cause| Failure::Io {
        doing: format!("read {}", file.display()),
        cause,
    };
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(failed)?)
    };
    let mut source = BufReader::new(source);
    let mut lines = Vec::new();
    loop {
        let read = source.read_until(b'\n', &mut lines).map_err(failed)?;
        if (read == 0 || lines.len() >= IMPORT_BYTES) && !lines.is_empty() {
            let lines = std::mem::take(&mut lines).into();
            if sender
                .blocking_send(StorageAdminImportRequest { lines })
                .is_err()
            {
                // The core has refused; what it said is told.
                return Ok(());
            }
        }
        if read == 0 {
            return Ok(());
        }
    }
}
