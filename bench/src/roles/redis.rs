//! Reads and writes of redis over one multiplexed connection.

use anyhow::{Context as _, Result, bail};
use redis::AsyncCommands as _;

use super::{Operation, Order, obey, operate, payload, peer_address};

pub(super) async fn client() -> Result<()> {
    let client = redis::Client::open(format!("redis://{}/", peer_address()?))?;
    let connection = client.get_multiplexed_async_connection().await?;
    obey(move |order| {
        let connection = connection.clone();
        async move {
            let Order::Operate {
                kind,
                concurrency,
                seconds,
            } = order
            else {
                bail!("a client does not {order:?}");
            };
            let operation = move |worker: usize| {
                let mut connection = connection.clone();
                async move {
                    let key = format!("key-{worker}");
                    match kind {
                        Operation::Set => {
                            let (): () = connection.set(key, payload().as_ref()).await?;
                        }
                        Operation::Get => {
                            let value: Option<Vec<u8>> = connection.get(key).await?;
                            value.context("it was set before")?;
                        }
                        other => bail!("redis does not {other:?}"),
                    }
                    Ok(())
                }
            };
            Ok(serde_json::to_value(
                operate(concurrency, seconds, operation).await?,
            )?)
        }
    })
    .await
}
