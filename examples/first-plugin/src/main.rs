use plugin_sdk::prelude::*;

struct Greeter;

#[plugin(name = "greeter")]
impl Greeter {
    /// Greets somebody.
    #[service]
    async fn hello(&self, ctx: &Ctx, name: String) -> Result<String> {
        ctx.publish("greeter.greeted", json!({ "name": name }))
            .await?;
        Ok(format!("Hello, {name}!"))
    }
}

plugin_sdk::main!(Greeter);

#[cfg(test)]
mod tests;
