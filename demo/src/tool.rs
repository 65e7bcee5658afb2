//! `corectl` as people use it: the built binary, the operator socket, the exit code.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::checkout::Checkout;
use crate::prepare::Home;

/// `corectl` with the core of a home as its target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool<'a> {
    pub(crate) checkout: &'a Checkout,
    pub(crate) home: &'a Home,
}

impl Tool<'_> {
    /// Runs a command that must end with `code`; gives what it printed.
    ///
    /// # Cancel safety
    /// Cancel safe: the process is killed.
    pub(crate) async fn ends_with(self, code: i32, arguments: &[&str]) -> Result<String> {
        let line = arguments.join(" ");
        let mut command = Command::new(self.checkout.binary("corectl")?);
        command
            .args(arguments)
            .env(
                "CORE_ADDR",
                format!("unix:{}", self.home.operator_socket().display()),
            )
            .env_remove("CORE_TOKEN")
            .env_remove("CORE_TOKEN_FILE")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("`corectl {line}` does not end"))?
            .context("cannot run corectl")?;
        ensure!(
            output.status.code() == Some(code),
            "`corectl {line}` ended with {}, not {code}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        String::from_utf8(output.stdout).with_context(|| format!("`corectl {line}`: not UTF-8"))
    }

    /// What a command prints that must succeed.
    pub(crate) async fn prints(self, arguments: &[&str]) -> Result<String> {
        self.ends_with(0, arguments).await
    }

    /// The JSON that a command prints, which must succeed.
    pub(crate) async fn json(self, arguments: &[&str]) -> Result<Value> {
        let printed = self.prints(arguments).await?;
        serde_json::from_str(&printed)
            .with_context(|| format!("`corectl {}`: not JSON: {printed}", arguments.join(" ")))
    }
}
