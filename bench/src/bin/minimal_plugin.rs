//! The smallest plugin that does something: what starting one costs, and what it weighs.

use plugin_sdk::{Plugin, Service};

plugin_sdk::main!(
    Plugin::builder("minimal")
        .service(Service::new("echo").handle_raw(|_ctx, arguments| async move { Ok(arguments) }))
);
