//! `corectl storage`: get, set, delete, list; the rest is in `storage_admin`.

use core_proto::v1::{
    StorageDeleteRequest, StorageEntry, StorageGetRequest, StorageListKeysRequest,
    StorageScanRequest, StorageSetRequest,
};
use serde::Serialize;

use crate::arguments;
use crate::cli::{Global, StorageCommand, ValueArgs};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Table, now};
use crate::storage_admin;
use crate::text::nearest;
use crate::time;

/// Keys in one answer; the most that the contract allows.
const PAGE_SIZE: u32 = 1000;

/// The JSON shape of an entry.
#[derive(Debug, Serialize)]
struct EntryView {
    key: String,
    value: Payload,
    revision: u64,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// The JSON shape of `storage get`.
#[derive(Debug, Serialize)]
struct GotView<'a> {
    namespace: &'a str,
    key: &'a str,
    value: Payload,
    revision: u64,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// The JSON shape of a write.
#[derive(Debug, Serialize)]
struct WrittenView<'a> {
    namespace: &'a str,
    key: &'a str,
    revision: u64,
    created: bool,
}

/// The JSON shape of a removal.
#[derive(Debug, Serialize)]
struct DeletedView<'a> {
    namespace: &'a str,
    key: &'a str,
    existed: bool,
    revision: u64,
}

impl From<StorageEntry> for EntryView {
    fn from(entry: StorageEntry) -> Self {
        Self {
            key: entry.key,
            value: Payload::json(&entry.value),
            revision: entry.revision,
            updated_at: time::rfc3339(entry.updated_at.as_ref()),
            expires_at: time::rfc3339(entry.expires_at.as_ref()),
        }
    }
}

/// Runs a command of this group.
pub(crate) async fn run(
    global: &Global,
    command: &StorageCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        StorageCommand::Get { namespace, key } => {
            get(&Core::connect(global).await?, namespace, key, output).await
        }
        StorageCommand::Set {
            namespace,
            key,
            value,
        } => {
            let bytes = arguments::of_value(value)?;
            let core = Core::connect(global).await?;
            set(&core, namespace, key, value, bytes, output).await
        }
        StorageCommand::Delete {
            namespace,
            key,
            if_revision,
        } => {
            let core = Core::connect(global).await?;
            delete(&core, namespace, key, *if_revision, output).await
        }
        StorageCommand::List {
            namespace,
            prefix,
            values,
        } => {
            let core = Core::connect(global).await?;
            let prefix = prefix.as_deref().unwrap_or("");
            if *values {
                list_entries(&core, namespace, prefix, output).await
            } else {
                list_keys(&core, namespace, prefix, output).await
            }
        }
        _ => storage_admin::run(&Core::connect(global).await?, command, output).await,
    }
}

async fn get(core: &Core, namespace: &str, key: &str, output: &mut Output) -> Result<(), Failure> {
    let question = StorageGetRequest {
        namespace: namespace.to_owned(),
        key: key.to_owned(),
    };
    let mut client = core.storage();
    let response = core
        .ask("", UNARY_TIMEOUT, question, |request| client.get(request))
        .await?;
    let Some(entry) = response.entry else {
        return Err(Failure::NotFound {
            what: format!("key {key:?} in namespace {namespace:?}"),
            hint: suggestion(core, namespace, key).await,
        });
    };
    match output.form() {
        Form::Json => output.json(&GotView {
            namespace,
            key,
            value: Payload::json(&entry.value),
            revision: entry.revision,
            updated_at: time::rfc3339(entry.updated_at.as_ref()),
            expires_at: time::rfc3339(entry.expires_at.as_ref()),
        }),
        Form::Table | Form::Quiet => output.data(&entry.value),
    }
}

/// "did you mean" among the keys with the same first letter. Best effort.
async fn suggestion(core: &Core, namespace: &str, key: &str) -> String {
    let near: String = key.chars().take(1).collect();
    let page = page_of_keys(core, namespace, &near, String::new()).await;
    let keys = page.map(|page| page.keys).unwrap_or_default();
    nearest(key, keys.iter().map(String::as_str)).map_or_else(
        || format!("`corectl storage list {namespace}` shows the keys"),
        |meant| format!("did you mean {meant:?}?"),
    )
}

async fn set(
    core: &Core,
    namespace: &str,
    key: &str,
    value: &ValueArgs,
    bytes: Vec<u8>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = StorageSetRequest {
        namespace: namespace.to_owned(),
        key: key.to_owned(),
        value: bytes.into(),
        if_revision: value.if_revision,
        ttl: time::to_wire_duration(value.ttl),
    };
    let mut client = core.storage();
    let written = core
        .ask("", UNARY_TIMEOUT, question, |request| client.set(request))
        .await?;
    match output.form() {
        Form::Json => output.json(&WrittenView {
            namespace,
            key,
            revision: written.revision,
            created: written.created,
        }),
        Form::Quiet => Ok(()),
        Form::Table => {
            let word = if written.created {
                "created"
            } else {
                "replaced"
            };
            let revision = format!("revision {}", written.revision);
            output.cells(&[key.into(), revision.into(), word.into()])
        }
    }
}

async fn delete(
    core: &Core,
    namespace: &str,
    key: &str,
    if_revision: Option<u64>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = StorageDeleteRequest {
        namespace: namespace.to_owned(),
        key: key.to_owned(),
        if_revision,
    };
    let mut client = core.storage();
    let deleted = core
        .ask("", UNARY_TIMEOUT, question, |request| {
            client.delete(request)
        })
        .await?;
    match output.form() {
        Form::Json => output.json(&DeletedView {
            namespace,
            key,
            existed: deleted.existed,
            revision: deleted.revision,
        }),
        Form::Quiet => Ok(()),
        Form::Table => {
            let word = if deleted.existed {
                "deleted"
            } else {
                "was not there"
            };
            output.cells(&[key.into(), word.into()])
        }
    }
}

async fn page_of_keys(
    core: &Core,
    namespace: &str,
    prefix: &str,
    page_token: String,
) -> Result<core_proto::v1::StorageListKeysResponse, Failure> {
    let question = StorageListKeysRequest {
        namespace: namespace.to_owned(),
        prefix: prefix.to_owned(),
        page_size: PAGE_SIZE,
        page_token,
        ..Default::default()
    };
    let mut client = core.storage();
    core.ask("", UNARY_TIMEOUT, question, |request| {
        client.list_keys(request)
    })
    .await
}

async fn list_keys(
    core: &Core,
    namespace: &str,
    prefix: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List<'a> {
        namespace: &'a str,
        keys: Vec<String>,
    }
    let keys = Core::all_pages(async |page_token| {
        let page = page_of_keys(core, namespace, prefix, page_token).await?;
        Ok((page.keys, page.next_page_token))
    })
    .await?;
    match output.form() {
        Form::Json => output.json(&List { namespace, keys }),
        Form::Quiet => keys.iter().try_for_each(|key| output.line(key)),
        Form::Table => {
            let mut table = Table::new(["KEY"]);
            keys.iter().for_each(|key| table.row([Cell::from(key)]));
            output.table(&table, "no keys")
        }
    }
}

async fn list_entries(
    core: &Core,
    namespace: &str,
    prefix: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List<'a> {
        namespace: &'a str,
        entries: Vec<EntryView>,
    }
    let entries = Core::all_pages(async |page_token| {
        let question = StorageScanRequest {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            page_size: PAGE_SIZE,
            page_token,
            ..Default::default()
        };
        let mut client = core.storage();
        let page = core
            .ask("", UNARY_TIMEOUT, question, |request| client.scan(request))
            .await?;
        Ok((page.entries, page.next_page_token))
    })
    .await?;
    match output.form() {
        Form::Json => output.json(&List {
            namespace,
            entries: entries.into_iter().map(EntryView::from).collect(),
        }),
        Form::Quiet => entries.iter().try_for_each(|entry| output.line(&entry.key)),
        Form::Table => {
            let now = now();
            let mut table = Table::new(["KEY", "REVISION", "UPDATED", "VALUE"]);
            for entry in &entries {
                table.row([
                    Cell::from(&entry.key),
                    entry.revision.to_string().into(),
                    time::relative(entry.updated_at.as_ref(), now).into(),
                    Payload::json(&entry.value).line("").into(),
                ]);
            }
            output.table(&table, "no keys")
        }
    }
}
