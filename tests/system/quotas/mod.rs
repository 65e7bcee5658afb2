//! What a plugin may use of the core, from outside: each quota as a unary RPC and as a frame, which count
//! together; what is told at the bound; who is left alone.

use std::time::Duration;

use core_proto::google::rpc;
use core_proto::v1::{self, PluginQuota};
use core_server::config::{Config, Quota, Quotas};
use core_tests::{
    BytesCodec, Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, within,
};
use prost::Message as _;
use serde_json::json;
use tokio::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Of every rate in the table: so much a second, and what each request of the table costs.
const LIMIT: u64 = 2;

/// Asks until it is refused, which is at once unless this machine sleeps. At most so many are let in as
/// the time that passes allows.
macro_rules! until_refused {
    ($ask:expr) => {{
        let begin = Instant::now();
        let mut let_in = 0_u32;
        let refusal = loop {
            match $ask {
                Ok(()) => let_in += 1,
                Err(refusal) => break refusal,
            }
            assert!(let_in < 1_000, "nothing is ever refused");
        };
        let seconds = begin.elapsed().as_secs_f64();
        let allowed = LIMIT as f64 * (seconds + 1.0);
        assert!(f64::from(let_in) <= allowed, "{let_in} in {seconds} s");
        refusal
    }};
}

mod held;
mod rates;
mod running;

/// What is asked for, and which quota it uses up with one request.
struct Use {
    quota: Quota,
    method: &'static str,
    message: Vec<u8>,
}

fn event(bytes: usize) -> v1::NewEvent {
    v1::NewEvent {
        topic: "lamp.on".to_owned(),
        data: vec![b'1'; bytes].into(),
        ..Default::default()
    }
}

fn uses() -> Vec<Use> {
    let row = |quota, method, message: Vec<u8>| Use {
        quota,
        method,
        message,
    };
    let (namespace, key) = ("lamp".to_owned(), "k".to_owned());
    let two = || vec![event(1), event(1)];
    let publish = v1::EventBusPublishRequest {
        event: Some(event(2)),
    };
    let batch = v1::EventBusPublishBatchRequest { events: two() };
    let call = v1::ServiceRegistryCallRequest {
        service: "lamp.on".to_owned(),
        ..Default::default()
    };
    let set = v1::StorageSetRequest {
        namespace: namespace.clone(),
        key: key.clone(),
        value: "1".into(),
        ..Default::default()
    };
    let delete = v1::StorageDeleteRequest {
        namespace: namespace.clone(),
        key: key.clone(),
        ..Default::default()
    };
    let delete_of = |key: &str| v1::StorageOp {
        op: Some(v1::storage_op::Op::Delete(v1::StorageOpDelete {
            key: key.to_owned(),
        })),
    };
    let set_of = |key: &str| v1::StorageOp {
        op: Some(v1::storage_op::Op::Set(v1::StorageOpSet {
            key: key.to_owned(),
            value: "1".into(),
            ..Default::default()
        })),
    };
    let apply = v1::StorageApplyRequest {
        namespace: namespace.clone(),
        ops: vec![set_of("a"), set_of("b")],
        ..Default::default()
    };
    let apply_with_check = v1::StorageApplyRequest {
        namespace: namespace.clone(),
        checks: vec![v1::StorageCheck {
            key: "c".to_owned(),
            revision: 0,
        }],
        ops: vec![delete_of("a")],
        ..Default::default()
    };
    let apply_with_events = v1::StorageApplyRequest {
        namespace: namespace.clone(),
        ops: vec![delete_of("a")],
        events: two(),
        ..Default::default()
    };
    let get = v1::StorageGetRequest {
        namespace: namespace.clone(),
        key: key.clone(),
    };
    let get_many = v1::StorageGetManyRequest {
        namespace: namespace.clone(),
        keys: vec![key.clone(), "l".to_owned()],
    };
    let list = v1::StorageListKeysRequest {
        namespace: namespace.clone(),
        page_size: 200,
        ..Default::default()
    };
    let scan = v1::StorageScanRequest {
        namespace: namespace.clone(),
        page_size: 101,
        ..Default::default()
    };
    let usage = v1::StorageUsageRequest { namespace };
    let set_state = v1::StateEngineSetRequest {
        key: "lamp.k".to_owned(),
        value: "1".into(),
        ..Default::default()
    };
    let register = v1::ServiceRegistryRegisterRequest {
        service: Some(v1::ServiceDescription {
            name: "lamp.on".to_owned(),
            ..Default::default()
        }),
    };
    let unregister = v1::ServiceRegistryUnregisterRequest {
        name: "lamp.on".to_owned(),
    };
    let delete_state = v1::StateEngineDeleteRequest {
        key: "lamp.k".to_owned(),
        ..Default::default()
    };
    vec![
        row(
            Quota::PublishesPerSecond,
            "EventBus/Publish",
            publish.encode_to_vec(),
        ),
        row(
            Quota::PublishesPerSecond,
            "EventBus/PublishBatch",
            batch.encode_to_vec(),
        ),
        row(
            Quota::PublishesPerSecond,
            "Storage/Apply",
            apply_with_events.encode_to_vec(),
        ),
        row(
            Quota::PublishBytesPerSecond,
            "EventBus/Publish",
            publish.encode_to_vec(),
        ),
        row(
            Quota::PublishBytesPerSecond,
            "EventBus/PublishBatch",
            batch.encode_to_vec(),
        ),
        row(
            Quota::PublishBytesPerSecond,
            "Storage/Apply",
            apply_with_events.encode_to_vec(),
        ),
        row(
            Quota::CallsPerSecond,
            "ServiceRegistry/Call",
            call.encode_to_vec(),
        ),
        row(
            Quota::StorageWritesPerSecond,
            "Storage/Set",
            set.encode_to_vec(),
        ),
        row(
            Quota::StorageWritesPerSecond,
            "Storage/Delete",
            delete.encode_to_vec(),
        ),
        row(
            Quota::StorageWritesPerSecond,
            "Storage/Apply",
            apply.encode_to_vec(),
        ),
        row(
            Quota::StorageWritesPerSecond,
            "Storage/Apply",
            apply_with_check.encode_to_vec(),
        ),
        row(
            Quota::StorageWriteBytesPerSecond,
            "Storage/Set",
            set.encode_to_vec(),
        ),
        row(
            Quota::StorageWriteBytesPerSecond,
            "Storage/Apply",
            apply.encode_to_vec(),
        ),
        row(
            Quota::StorageReadsPerSecond,
            "Storage/Get",
            get.encode_to_vec(),
        ),
        row(
            Quota::StorageReadsPerSecond,
            "Storage/GetMany",
            get_many.encode_to_vec(),
        ),
        row(
            Quota::StorageReadsPerSecond,
            "Storage/ListKeys",
            list.encode_to_vec(),
        ),
        row(
            Quota::StorageReadsPerSecond,
            "Storage/Scan",
            scan.encode_to_vec(),
        ),
        row(
            Quota::StorageReadsPerSecond,
            "Storage/Usage",
            usage.encode_to_vec(),
        ),
        row(
            Quota::StateWritesPerSecond,
            "StateEngine/Set",
            set_state.encode_to_vec(),
        ),
        row(
            Quota::StateWritesPerSecond,
            "StateEngine/Delete",
            delete_state.encode_to_vec(),
        ),
        row(
            Quota::StateWritesPerSecond,
            "ServiceRegistry/Register",
            register.encode_to_vec(),
        ),
        row(
            Quota::StateWritesPerSecond,
            "ServiceRegistry/Unregister",
            unregister.encode_to_vec(),
        ),
    ]
}

/// The same of another plugin, whose name is as long.
fn of_door(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    for start in 0..message.len().saturating_sub(3) {
        if message[start..].starts_with(b"lamp") {
            message[start..start + 4].copy_from_slice(b"door");
        }
    }
    message
}

/// A refusal, as far as this is about it.
#[derive(Debug)]
struct Refusal {
    code: Code,
    reason: String,
    message: String,
    facts: Vec<(String, String)>,
    wait: Option<Duration>,
}

impl Refusal {
    fn unary(status: &Status) -> Self {
        let told = Told::by(status);
        let details = status.get_error_details();
        Self {
            code: told.code,
            reason: told.reason,
            message: told.message,
            facts: told.facts,
            wait: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }

    fn frame(error: &rpc::Status) -> Self {
        let (mut info, mut wait) = (rpc::ErrorInfo::default(), None);
        for detail in &error.details {
            let value = detail.value.as_slice();
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => info = rpc::ErrorInfo::decode(value).expect("one"),
                Some("google.rpc.RetryInfo") => {
                    let retry = rpc::RetryInfo::decode(value).expect("one").retry_delay;
                    wait = retry.map(|delay| Duration::try_from(delay).expect("positive"));
                }
                _ => {}
            }
        }
        let mut facts: Vec<_> = info.metadata.into_iter().collect();
        facts.sort();
        Self {
            code: Code::from_i32(error.code),
            reason: info.reason,
            message: error.message.clone(),
            facts,
            wait,
        }
    }

    /// Asserts what every refusal of a rate says, and gives back how long to wait.
    #[track_caller]
    fn names(&self, quota: Quota, limit: u64) -> Duration {
        assert_eq!(self.code, Code::ResourceExhausted, "{self:?}");
        assert_eq!(self.reason, "RATE_LIMITED", "{self:?}");
        let key = quota.key();
        for part in [
            format!("{limit} "),
            format!("plugins.lamp.quotas.{key}"),
            format!("quotas.{key} for all"),
        ] {
            assert!(self.message.contains(&part), "{part} in {self:?}");
        }
        let limit = limit.to_string();
        for (name, value) in [
            ("plugin", "lamp"),
            ("quota", key),
            ("limit", &limit),
            ("outcome", "not_applied"),
        ] {
            let fact = (name.to_owned(), value.to_owned());
            assert!(self.facts.contains(&fact), "{fact:?} in {self:?}");
        }
        self.wait.expect("RetryInfo")
    }
}

async fn unary(client: &Client, used: &Use) -> Result<(), Refusal> {
    let mut grpc = tonic::client::Grpc::new(client.link());
    within("connected", grpc.ready()).await.expect("connected");
    let path: PathAndQuery = format!("/coreruntime.v1.{}", used.method)
        .parse()
        .expect("a path");
    let request = Request::new(used.message.clone().into());
    let answer = within(used.method, grpc.unary(request, path, BytesCodec)).await;
    answer.map(drop).map_err(|status| Refusal::unary(&status))
}

async fn framed(plugin: &mut RawPlugin, used: &Use) -> Result<(), Refusal> {
    let request_id = plugin.send_encoded(used.method, used.message.clone()).await;
    match plugin.response(request_id).await.error {
        Some(error) => Err(Refusal::frame(&error)),
        None => Ok(()),
    }
}

/// `lamp` with a provider of `lamp.on` that answers at once, and these quotas for everybody.
async fn lamp(quotas: Quotas) -> (TestCore, RawPlugin) {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("door"))
        .configure(|config| config.quotas = quotas)
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready()).await;
    let lamp = lamp.expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    (core, lamp)
}

fn only(quota: Quota, limit: u64) -> Quotas {
    let mut quotas = Quotas::UNLIMITED;
    quotas.set(quota, limit);
    quotas
}

async fn quotas_of(core: &TestCore, plugin: &str) -> Vec<PluginQuota> {
    let request = v1::IntrospectionGetQuotasRequest {
        plugin: plugin.to_owned(),
    };
    let answer = core.operator().introspection().get_quotas(request).await;
    answer.expect("answered").into_inner().quotas
}
