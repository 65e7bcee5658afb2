//! `corectl plugins log-level`.

use core_proto::v1::PluginManagerSetLogLevelRequest;
use serde::Serialize;

use crate::cli::LogLevelArgs;
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::output::{Form, Output};

use super::explained;

/// The word for the plugin's own level, which the contract leaves empty.
const DEFAULT: &str = "default";

/// The JSON shape.
#[derive(Debug, Serialize)]
struct LevelView {
    name: String,
    level: String,
}

/// Sets the level if one is given, and shows the one in force.
pub(super) async fn run(
    core: &Core,
    arguments: &LogLevelArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let name = &arguments.name;
    let level = arguments.level.as_deref();
    let question = PluginManagerSetLogLevelRequest {
        name: name.clone(),
        level: level.map(|level| if level == DEFAULT { "" } else { level }.to_owned()),
    };
    let mut client = core.plugins();
    let answer = core.ask(name, UNARY_TIMEOUT, question, |request| {
        client.set_log_level(request)
    });
    let level = match answer.await {
        Ok(answer) if answer.level.is_empty() => DEFAULT.to_owned(),
        Ok(answer) => answer.level,
        Err(failure) => return Err(explained(core, name, failure).await),
    };
    match output.form() {
        Form::Json => output.json(&LevelView {
            name: name.clone(),
            level,
        }),
        Form::Quiet => output.line(&level),
        Form::Table => output.cells(&[name.into(), level.into()]),
    }
}
