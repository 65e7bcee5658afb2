//! The core's clients: plugins made with the Rust SDK, as their authors would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use core_proto::v1;
use plugin_sdk::client::{Address, Connection, Token};
use plugin_sdk::host::{Settings, run};
use plugin_sdk::{CallOptions, Ctx, NewEvent, Plugin, PluginBuilder, Service, Subscribe};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Operation, Order, number, obey, operate, payload, timed};

/// Runs a plugin beside this task and waits until it is started.
async fn start(plugin: PluginBuilder, settings: Settings) -> Result<Ctx> {
    let (started, mut is_started) = watch::channel(None);
    let started = Arc::new(started);
    let plugin = plugin.task("ready", move |ctx: Ctx| {
        let started = Arc::clone(&started);
        async move {
            started.send_replace(Some(ctx.clone()));
            ctx.shutdown().cancelled_owned().await;
            Ok(())
        }
    });
    tokio::spawn(async move {
        let ending = run(plugin, settings, CancellationToken::new()).await;
        eprintln!("a plugin ended: {ending:?}");
    });
    let ctx = is_started.wait_for(Option::is_some).await?;
    ctx.clone().context("it was waited for")
}

/// The SDK's error is no `std::error::Error`, so that handlers may turn any error into it.
fn told(error: plugin_sdk::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

fn echo() -> Service {
    Service::new("echo").handle_raw(|_ctx, arguments| async move { Ok(arguments) })
}

pub(super) async fn provider() -> Result<()> {
    let _ctx = start(
        Plugin::builder("provider").service(echo()),
        Settings::from_env()?,
    )
    .await?;
    obey(|order| async move { bail!("a provider does not {order:?}") }).await
}

/// So many plugins, each with a service and a subscription that nobody uses.
pub(super) async fn crowd() -> Result<()> {
    let count = number("CROWD")?;
    let address: Address = std::env::var("CORE_ADDR")?.parse()?;
    let mut plugins = Vec::new();
    for index in 0..count {
        let name = format!("crowd{index}");
        let settings = Settings::remote(address.clone(), Token::new(crate::servers::token(&name)));
        let plugin = Plugin::builder(&name)
            .service(echo())
            .on(format!("{name}.news"), |_ctx, _event| async { Ok(()) });
        plugins.push(start(plugin, settings).await?);
    }
    obey(|order| async move { bail!("a crowd does not {order:?}") }).await
}

pub(super) async fn client() -> Result<()> {
    let settings = Settings::from_env()?;
    let heard = Arc::new(Notify::new());
    let hears = Arc::clone(&heard);
    let plugin = Plugin::builder("client").on("client.to_self", move |_ctx, _event| {
        hears.notify_one();
        async { Ok(()) }
    });
    let ctx = start(plugin, settings).await?;
    let address: Address = std::env::var("CORE_ADDR")?.parse()?;
    let token = Token::new(std::env::var("CORE_TOKEN")?);
    let unary = Connection::connect(address, Some(token)).await?;
    obey(move |order| {
        let (ctx, unary, heard) = (ctx.clone(), unary.clone(), Arc::clone(&heard));
        async move {
            match order {
                Order::Operate {
                    kind,
                    concurrency,
                    seconds,
                } => {
                    let sample = operations(ctx, unary, kind, concurrency, seconds).await?;
                    Ok(serde_json::to_value(sample)?)
                }
                Order::Publish { count, topics } => timed(publish(ctx, count, topics)).await,
                Order::Latency { seconds } => {
                    let operation = move |_| {
                        let (ctx, heard) = (ctx.clone(), Arc::clone(&heard));
                        async move {
                            let event = NewEvent::raw("client.to_self", "", payload());
                            ctx.publish_event_nowait(event).await.map_err(told)?;
                            heard.notified().await;
                            Ok(())
                        }
                    };
                    Ok(serde_json::to_value(operate(1, seconds, operation).await?)?)
                }
                Order::Expect { .. } => bail!("a client expects nothing"),
            }
        }
    })
    .await
}

async fn operations(
    ctx: Ctx,
    unary: Connection,
    kind: Operation,
    concurrency: usize,
    seconds: f64,
) -> Result<crate::measure::Sample> {
    match kind {
        Operation::Call => {
            let call = move |_| {
                let ctx = ctx.clone();
                async move {
                    ctx.call_raw("provider.echo", payload(), CallOptions::new())
                        .await
                        .map_err(told)?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, call).await
        }
        Operation::UnaryCall => {
            let call = move |_| {
                let mut registry = unary.service_registry();
                async move {
                    let request = v1::ServiceRegistryCallRequest {
                        service: "provider.echo".to_owned(),
                        arguments: payload(),
                        ..Default::default()
                    };
                    registry.call(request).await?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, call).await
        }
        Operation::Set => {
            let set = move |worker| {
                let ctx = ctx.clone();
                async move {
                    let text = std::str::from_utf8(&payload())?.to_owned();
                    let raw = serde_json::value::RawValue::from_string(text)?;
                    ctx.storage()
                        .set(&format!("key-{worker}"), &raw)
                        .await
                        .map_err(told)?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, set).await
        }
        Operation::UnarySet => {
            let set = move |worker| {
                let mut storage = unary.storage();
                async move {
                    let request = v1::StorageSetRequest {
                        namespace: "client".to_owned(),
                        key: format!("key-{worker}"),
                        value: payload(),
                        ..Default::default()
                    };
                    storage.set(request).await?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, set).await
        }
        Operation::Get => {
            let get = move |worker| {
                let ctx = ctx.clone();
                async move {
                    let key = format!("key-{worker}");
                    let entry = ctx
                        .storage()
                        .get::<serde_json::Value>(&key)
                        .await
                        .map_err(told)?;
                    entry.context("it was set before")?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, get).await
        }
        Operation::State => {
            let turns = AtomicU64::new(0);
            let turn = move |worker| {
                let ctx = ctx.clone();
                let writes = turns.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
                async move {
                    let key = format!("client.key-{worker}");
                    if writes {
                        let text = std::str::from_utf8(&payload())?.to_owned();
                        let raw = serde_json::value::RawValue::from_string(text)?;
                        ctx.state().set(&key, &raw).await.map_err(told)?;
                    } else {
                        ctx.state()
                            .get::<serde_json::Value>(&key)
                            .await
                            .map_err(told)?;
                    }
                    Ok(())
                }
            };
            operate(concurrency, seconds, turn).await
        }
        Operation::Event => {
            let publish = move |_| {
                let ctx = ctx.clone();
                async move {
                    let event = NewEvent::raw("client.news", "", payload());
                    ctx.publish_event(event).await.map_err(told)?;
                    Ok(())
                }
            };
            operate(concurrency, seconds, publish).await
        }
    }
}

async fn publish(ctx: Ctx, count: u64, topics: usize) -> Result<()> {
    let data = payload();
    let names: Vec<String> = (0..topics)
        .map(|topic| format!("client.t{topic}"))
        .collect();
    for topic in names.iter().cycle().take(usize::try_from(count)?) {
        let event = NewEvent::raw(topic.clone(), "", data.clone());
        ctx.publish_event_nowait(event).await.map_err(told)?;
    }
    Ok(())
}

/// So many plugins, each with a subscription: to everything that the client publishes, or each to a topic
/// of its own.
pub(super) async fn subscribers() -> Result<()> {
    let count = number("SUBSCRIBERS")?;
    let narrow = number("NARROW")? == 1;
    let address: Address = std::env::var("CORE_ADDR")?.parse()?;
    let counters: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let gaps = Arc::new(AtomicU64::new(0));
    let progress = Arc::new(Notify::new());
    let expected = Arc::new(AtomicU64::new(u64::MAX));
    let mut plugins = Vec::new();
    for index in 0..count {
        let pattern = match narrow {
            true => format!("client.t{index}"),
            false => "client.>".to_owned(),
        };
        let name = format!("sub{index}");
        let (counters, progress) = (Arc::clone(&counters), Arc::clone(&progress));
        let (expected, gaps) = (Arc::clone(&expected), Arc::clone(&gaps));
        let subscription = Subscribe::to(pattern)
            .on_gap(move |_ctx, gap| {
                gaps.fetch_add(gap.to_seq - gap.from_seq + 1, Ordering::Relaxed);
                async { Ok(()) }
            })
            .handle(move |_ctx, _event| {
                let seen = counters[index].fetch_add(1, Ordering::Relaxed) + 1;
                if seen == expected.load(Ordering::Relaxed) {
                    progress.notify_one();
                }
                async { Ok(()) }
            });
        let settings = Settings::remote(address.clone(), Token::new(crate::servers::token(&name)));
        plugins.push(start(Plugin::builder(&name).subscribe(subscription), settings).await?);
    }
    obey(move |order| {
        let (counters, progress) = (Arc::clone(&counters), Arc::clone(&progress));
        let (expected, gaps) = (Arc::clone(&expected), Arc::clone(&gaps));
        async move {
            let Order::Expect { count } = order else {
                bail!("subscribers do not {order:?}");
            };
            expected.store(count, Ordering::SeqCst);
            let all = || {
                counters
                    .iter()
                    .all(|counter| counter.load(Ordering::Relaxed) >= count)
            };
            timed(async {
                while !all() {
                    progress.notified().await;
                    if gaps.load(Ordering::Relaxed) > 0 {
                        bail!("{} events were lost", gaps.load(Ordering::Relaxed));
                    }
                }
                Ok(())
            })
            .await
        }
    })
    .await
}
