//! The same as in `core.rs`, over nats with its own client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use tokio::sync::Notify;

use super::{Operation, Order, number, obey, operate, payload, peer_address, timed};

async fn connect() -> Result<async_nats::Client> {
    let options = async_nats::ConnectOptions::new()
        // So that nothing is dropped on the client's side during a burst.
        .subscription_capacity(1 << 20);
    Ok(options.connect(peer_address()?).await?)
}

pub(super) async fn responder() -> Result<()> {
    let client = connect().await?;
    let mut requests = client.subscribe("echo").await?;
    client.flush().await?;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                // A failed publish shows as a request without an answer.
                let _lost = client.publish(reply, request.payload).await;
            }
        }
    });
    obey(|order| async move { bail!("a responder does not {order:?}") }).await
}

pub(super) async fn client() -> Result<()> {
    let client = connect().await?;
    obey(move |order| {
        let client = client.clone();
        async move {
            match order {
                Order::Operate {
                    kind: Operation::Call,
                    concurrency,
                    seconds,
                } => {
                    let request = move |_| {
                        let client = client.clone();
                        async move {
                            client.request("echo", payload()).await?;
                            Ok(())
                        }
                    };
                    Ok(serde_json::to_value(
                        operate(concurrency, seconds, request).await?,
                    )?)
                }
                Order::Publish { count, topics } => timed(publish(client, count, topics)).await,
                order => bail!("a client does not {order:?}"),
            }
        }
    })
    .await
}

async fn publish(client: async_nats::Client, count: u64, topics: usize) -> Result<()> {
    let data = payload();
    let names: Vec<String> = (0..topics)
        .map(|topic| format!("client.t{topic}"))
        .collect();
    for topic in names.iter().cycle().take(usize::try_from(count)?) {
        client.publish(topic.clone(), data.clone()).await?;
    }
    client.flush().await?;
    Ok(())
}

pub(super) async fn subscribers() -> Result<()> {
    let count = number("SUBSCRIBERS")?;
    let narrow = number("NARROW")? == 1;
    let counters: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let progress = Arc::new(Notify::new());
    let expected = Arc::new(AtomicU64::new(u64::MAX));
    for index in 0..count {
        let subject = match narrow {
            true => format!("client.t{index}"),
            false => "client.>".to_owned(),
        };
        let client = connect().await?;
        let mut messages = client.subscribe(subject).await?;
        client.flush().await?;
        let (counters, progress) = (Arc::clone(&counters), Arc::clone(&progress));
        let expected = Arc::clone(&expected);
        tokio::spawn(async move {
            // Held for the connection.
            let _client = client;
            while messages.next().await.is_some() {
                let seen = counters[index].fetch_add(1, Ordering::Relaxed) + 1;
                if seen == expected.load(Ordering::Relaxed) {
                    progress.notify_one();
                }
            }
        });
    }
    obey(move |order| {
        let (counters, progress) = (Arc::clone(&counters), Arc::clone(&progress));
        let expected = Arc::clone(&expected);
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
                }
                Ok(())
            })
            .await
        }
    })
    .await
}
