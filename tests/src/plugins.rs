//! Plugins that behave, for every way a plugin can run: as a child, elsewhere, inside the core.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use plugin_sdk::prelude::*;

/// Arguments of `say`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Say {
    text: String,
}

/// Arguments of `relay`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Relay {
    service: String,
    arguments: Value,
}

/// Arguments of `emit`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Emit {
    topic: String,
    data: Value,
}

/// Arguments of `wait`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Wait {
    millis: u64,
}

/// Arguments of `log`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Log {
    level: String,
    text: String,
}

/// Arguments of `elsewhere`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Elsewhere {
    pid: u32,
}

/// Arguments of `exit`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Exit {
    code: i32,
}

/// The plugin's configuration.
#[derive(Debug, Default, Deserialize)]
struct Config {
    /// Pattern of the topics that it is to hear.
    hear: Option<String>,
}

/// What it heard of one event.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Note {
    topic: String,
    source: String,
    data: Value,
}

/// A plugin that says back what it is told, and a little more:
///
/// | service | answers |
/// |---|---|
/// | `say {text}` | `{plugin, caller, text}` |
/// | `relay {service, arguments}` | what that service answers |
/// | `emit {topic, data}` | the event's seq |
/// | `heard` | the events that it heard, oldest first; `hear` in its configuration says of what |
/// | `wait {millis}` | nothing, so much later |
/// | `log {level, text}` | nothing; it logs the text with the field `number` |
/// | `refuse` | always an error of its own |
/// | `panic` | never: it panics |
/// | `exit {code}` | never: its process ends |
/// | `pid` | its process id |
/// | `elsewhere {pid}` | its process id, but never in the process of this id; idempotent |
#[must_use]
pub fn echo(name: &str) -> Plugin {
    let heard: Arc<Mutex<Vec<Note>>> = Arc::default();
    let notes = Arc::clone(&heard);
    Plugin::builder(name)
        .version("1.2.3")
        .description("says back what it is told")
        .service(
            Service::new("say")
                .idempotent()
                .handle(|ctx: Ctx, Say { text }| async move {
                    Ok(json!({ "plugin": ctx.plugin(), "caller": ctx.caller(), "text": text }))
                }),
        )
        .service(
            Service::new("relay").handle(|ctx: Ctx, relay: Relay| async move {
                ctx.call::<Value>(&relay.service, &relay.arguments).await
            }),
        )
        .service(
            Service::new("emit").handle(|ctx: Ctx, emit: Emit| async move {
                Ok(ctx.publish(&emit.topic, &emit.data).await?.seq)
            }),
        )
        .service(Service::new("heard").handle(move |_: Ctx, (): ()| {
            let heard = heard.lock().expect("no panic inside").clone();
            async move { Ok(heard) }
        }))
        .service(
            Service::new("wait").handle(|_: Ctx, Wait { millis }| async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(())
            }),
        )
        .service(
            Service::new("log").handle(|_: Ctx, Log { level, text }| async move {
                match level.as_str() {
                    "debug" => tracing::debug!(number = 7, "{text}"),
                    "info" => tracing::info!(number = 7, "{text}"),
                    _ => tracing::error!(number = 7, "{text}"),
                }
                Ok(())
            }),
        )
        .service(Service::new("refuse").handle(|_: Ctx, (): ()| async move {
            let error = Error::not_found("no lamp of this name").with_reason("NO_SUCH_LAMP");
            Err::<(), _>(error.with_metadata("lamp", "attic"))
        }))
        .service(Service::new("panic").handle(|_: Ctx, (): ()| async move {
            if std::hint::black_box(true) {
                panic!("a secret of the plugin's inside");
            }
            Ok(())
        }))
        .service(
            Service::new("exit").handle(|_: Ctx, Exit { code }| async move {
                if std::hint::black_box(true) {
                    #[expect(clippy::exit, reason = "a plugin that ends in the middle of a call")]
                    std::process::exit(code);
                }
                Ok(())
            }),
        )
        .service(Service::new("elsewhere").idempotent().handle(
            |_: Ctx, Elsewhere { pid }| async move {
                if pid == std::process::id() {
                    std::future::pending::<()>().await;
                }
                Ok(std::process::id())
            },
        ))
        .service(Service::new("pid").handle(|_: Ctx, (): ()| async move { Ok(std::process::id()) }))
        .on_load(move |ctx: Ctx| {
            let notes = Arc::clone(&notes);
            async move {
                let config: Config = ctx.config()?;
                let Some(pattern) = config.hear else {
                    return Ok(());
                };
                let heard = move |_: Ctx, event: Event| {
                    let notes = Arc::clone(&notes);
                    async move {
                        let data = event.json()?;
                        let (topic, source) = (event.topic().to_owned(), event.source().to_owned());
                        notes.lock().expect("no panic inside").push(Note {
                            topic,
                            source,
                            data,
                        });
                        Ok(())
                    }
                };
                ctx.on(pattern, heard).await?.keep();
                Ok(())
            }
        })
        .build()
}
