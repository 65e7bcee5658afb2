//! Frames of the plugin channel.

use core_proto::contract;
use core_proto::v1::{self, core_message, plugin_message};
use prost::Message as _;
use tokio::time::Instant;

use super::{BadField, check_size, duration, duration_to_proto, registry};
use crate::channel::{
    Hello, Hook, Inbound, Outbound, RefusedService, RequestFrame, Verdict, Welcome,
};
use crate::error::{ApplicationFailure, Failure};
use crate::event_bus::MAX_CONTENT_TYPE_BYTES;
use crate::grpc::status;
use crate::types::{Payload, PluginName};

/// Longest free text of a frame that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 10;
/// Most services and requirements of one `Hello`.
const MAX_HELLO_ITEMS: usize = 1_000;

/// Cuts a text at a character's boundary.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES)
            .rev()
            .find(|index| text.is_char_boundary(*index));
        text.truncate(end.unwrap_or(0));
    }
    text
}

pub(in crate::grpc) fn hello(hello: v1::Hello) -> Result<Hello, BadField> {
    check_size("instance", hello.instance.len(), 64)?;
    let too_many = |field, count: usize| {
        let why = format!("{count} entries, at most {MAX_HELLO_ITEMS} are allowed");
        Err(BadField::Malformed { field, why })
    };
    if hello.services.len() > MAX_HELLO_ITEMS {
        return too_many("services", hello.services.len());
    }
    if hello.requires.len() > MAX_HELLO_ITEMS {
        return too_many("requires", hello.requires.len());
    }
    if hello.permissions.len() > MAX_HELLO_ITEMS {
        return too_many("permissions", hello.permissions.len());
    }
    let permissions = hello.permissions.iter().map(super::access::request);
    let requires = hello.requires.iter().map(|name| {
        PluginName::parse(name).map_err(|error| BadField::Malformed {
            field: "requires",
            why: error.to_string(),
        })
    });
    Ok(Hello {
        wire_versions: (hello.wire_version_min, hello.wire_version_max),
        instance: hello.instance,
        plugin_version: cut(hello.plugin_version),
        description: cut(hello.description),
        sdk: cut(format!("{} {}", hello.sdk_name, hello.sdk_version)
            .trim()
            .to_owned()),
        heartbeat: hello
            .features
            .iter()
            .any(|feature| feature == contract::FEATURE_HEARTBEAT),
        live_config: hello
            .features
            .iter()
            .any(|feature| feature == contract::FEATURE_LIVE_CONFIG),
        ready: hello.ready,
        max_calls_in_flight: hello.max_calls_in_flight,
        requires: requires.collect::<Result<_, _>>()?,
        permissions: permissions.collect::<Result<_, _>>()?,
        services: hello
            .services
            .into_iter()
            .map(|service| {
                let name = cut(service.name.clone());
                registry::description(service).map_err(|error| RefusedService {
                    name,
                    failure: error.into(),
                })
            })
            .collect(),
    })
}

/// What a frame says. `Err` is a frame that the contract forbids; it ends nothing, and is counted as
/// unknown.
pub(in crate::grpc) fn inbound(message: v1::PluginMessage, max_payload_bytes: usize) -> Inbound {
    use plugin_message::Message;
    match message.message {
        Some(Message::HookDone(done)) => Inbound::HookDone {
            hook_id: done.hook_id,
            result: done.error.map_or(Ok(()), |error| Err(cut(error.message))),
        },
        Some(Message::ExtendDeadline(extend)) => match duration("by", extend.by) {
            Ok(Some(by)) => Inbound::ExtendDeadline {
                hook_id: extend.hook_id,
                by,
            },
            _ => Inbound::Unknown,
        },
        Some(Message::CallResponse(response)) => Inbound::CallResponse {
            call_id: response.call_id,
            result: call_result(response, max_payload_bytes),
        },
        Some(Message::Request(request)) => match duration("timeout", request.timeout) {
            Ok(timeout) if request.request_id != 0 => Inbound::Request(RequestFrame {
                request_id: request.request_id,
                method: request.method,
                message: request.message,
                timeout,
                parent: request.parent,
                traceparent: request.traceparent,
            }),
            _ => Inbound::Unknown,
        },
        Some(Message::RequestCancel(cancel)) => Inbound::RequestCancel {
            request_id: cancel.request_id,
        },
        Some(Message::Pong(pong)) => Inbound::Pong { nonce: pong.nonce },
        Some(Message::Health(health)) => match health.status() {
            v1::health::Status::Ok => Inbound::Health { degraded: None },
            v1::health::Status::Degraded => Inbound::Health {
                degraded: Some(cut(health.text)),
            },
            v1::health::Status::Unspecified => Inbound::Unknown,
        },
        Some(Message::ConfigResult(result)) => {
            use v1::config_result::Outcome;
            let outcome = result.outcome();
            let text = cut(result.text);
            Inbound::ConfigResult {
                revision: result.revision,
                verdict: match outcome {
                    Outcome::Applied => Verdict::Applied,
                    Outcome::Rejected => Verdict::Rejected(text),
                    Outcome::RestartNeeded | Outcome::Unspecified => Verdict::RestartNeeded(text),
                },
            }
        }
        Some(Message::Bye(bye)) => Inbound::Bye {
            reason: cut(bye.reason),
        },
        Some(Message::Hello(_)) | None => Inbound::Unknown,
    }
}

fn call_result(
    response: v1::CallResponse,
    max_payload_bytes: usize,
) -> Result<Payload, ApplicationFailure> {
    let bounded = match &response.error {
        Some(error) => check_size("error", error.encoded_len(), max_payload_bytes),
        None => check_size(
            "content_type",
            response.content_type.len(),
            MAX_CONTENT_TYPE_BYTES,
        )
        .and_then(|()| check_size("result", response.result.len(), max_payload_bytes)),
    };
    if let Err(error) = bounded {
        let Failure::System(failure) = Failure::from(error) else {
            unreachable!("a bad field is the system's failure")
        };
        // The provider broke the contract, not the caller: its error, told as if it had said so.
        let body = status::body(&Failure::System(failure));
        return Err(status::application(body));
    }
    if let Some(error) = response.error {
        return Err(status::application(error));
    }
    Ok(Payload {
        content_type: response.content_type.into(),
        data: response.result,
    })
}

/// A frame for the wire. `now` turns deadlines into the time that is left.
pub(in crate::grpc) fn outbound(frame: Outbound, now: Instant) -> v1::CoreMessage {
    use core_message::Message;
    let message = match frame {
        Outbound::Welcome(welcome) => Message::Welcome(welcome_to_proto(*welcome)),
        Outbound::RunHook {
            hook,
            hook_id,
            timeout,
        } => Message::RunHook(v1::RunHook {
            hook: hook_to_proto(hook).into(),
            hook_id,
            timeout: duration_to_proto(timeout),
        }),
        Outbound::Call(call) => Message::CallRequest(v1::CallRequest {
            call_id: call.call_id,
            service: call.service.as_ref().to_owned(),
            content_type: call.arguments.content_type.as_ref().to_owned(),
            arguments: call.arguments.data,
            // Never zero: the contract promises a positive time, and the deadline itself is kept by
            // the core.
            timeout: duration_to_proto(
                call.deadline
                    .saturating_duration_since(now)
                    .max(std::time::Duration::from_millis(1)),
            ),
            caller: call.caller.as_str().to_owned(),
            depth: call.depth,
            cause: call
                .cause
                .map(|cause| cause.to_string())
                .unwrap_or_default(),
            traceparent: call.traceparent,
        }),
        Outbound::CallCancel { call_id } => Message::CallCancel(v1::CallCancel { call_id }),
        Outbound::Response { request_id, result } => response(request_id, result),
        Outbound::CallResult { request_id, result } => {
            let result = result.map(|payload| {
                let message = v1::ServiceRegistryCallResponse {
                    content_type: payload.content_type.as_ref().to_owned(),
                    result: payload.data,
                };
                message.encode_to_vec().into()
            });
            response(request_id, result)
        }
        Outbound::Ping { nonce } => Message::Ping(v1::Ping { nonce }),
        Outbound::GoingAway { reason } => Message::GoingAway(v1::GoingAway { reason }),
        Outbound::ConfigChanged { revision, config } => {
            Message::ConfigChanged(v1::ConfigChanged { revision, config })
        }
        Outbound::DependencyChanged { name, available } => {
            Message::DependencyChanged(v1::DependencyChanged {
                name: name.to_string(),
                available,
            })
        }
        Outbound::PermissionsChanged(listed) => {
            Message::PermissionsChanged(v1::PermissionsChanged {
                granted: super::access::permissions(&listed.granted),
                denied: super::access::permissions(&listed.denied),
            })
        }
        Outbound::LogLevel { level } => Message::LogLevel(v1::LogLevel {
            level: level.to_owned(),
        }),
    };
    v1::CoreMessage {
        message: Some(message),
    }
}

fn response(request_id: u64, result: Result<bytes::Bytes, Failure>) -> core_message::Message {
    use v1::response::Origin;
    core_message::Message::Response(match result {
        Ok(message) => v1::Response {
            request_id,
            message,
            ..v1::Response::default()
        },
        Err(failure) => {
            let origin = match &failure {
                Failure::System(_) => Origin::Core,
                Failure::Application(_) => Origin::Provider,
            };
            v1::Response {
                request_id,
                error: Some(status::body(&failure)),
                origin: origin.into(),
                ..v1::Response::default()
            }
        }
    })
}

fn hook_to_proto(hook: Hook) -> v1::run_hook::Hook {
    match hook {
        Hook::Load => v1::run_hook::Hook::Load,
        Hook::Start => v1::run_hook::Hook::Start,
        Hook::Stop => v1::run_hook::Hook::Stop,
        Hook::Unload => v1::run_hook::Hook::Unload,
    }
}

fn welcome_to_proto(welcome: Welcome) -> v1::Welcome {
    let heartbeat = welcome
        .heartbeat_interval
        .map(|_| contract::FEATURE_HEARTBEAT);
    let live_config = welcome.live_config.then_some(contract::FEATURE_LIVE_CONFIG);
    let features = heartbeat.into_iter().chain(live_config);
    v1::Welcome {
        run: welcome.run.as_str().to_owned(),
        plugin: welcome.plugin.to_string(),
        generation: welcome.generation.0,
        core_version: env!("CARGO_PKG_VERSION").to_owned(),
        wire_version: welcome.wire_version,
        features: features.map(str::to_owned).collect(),
        config: welcome.config,
        config_revision: welcome.config_revision,
        refused: welcome
            .refused
            .into_iter()
            .map(|refused| v1::RefusedService {
                name: refused.name,
                error: Some(status::body(&refused.failure)),
            })
            .collect(),
        limits: Some(v1::ChannelLimits {
            max_message_bytes: welcome.max_message_bytes as u64,
            max_payload_bytes: welcome.max_payload_bytes as u64,
        }),
        heartbeat_interval: welcome.heartbeat_interval.and_then(duration_to_proto),
        resumed: welcome.resumed,
        granted: super::access::permissions(&welcome.permissions.granted),
        denied: super::access::permissions(&welcome.permissions.denied),
    }
}
