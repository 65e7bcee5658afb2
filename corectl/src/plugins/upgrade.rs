//! `corectl plugins upgrade`.

use std::path::Path;
use std::time::Duration;

use core_proto::v1::{PluginInfo, PluginManagerUpgradeRequest};

use crate::connect::Core;
use crate::failure::Failure;

/// The old version's end and the longest start.
const TIMEOUT: Duration = Duration::from_secs(360);

/// Asks for it and waits until the new version is ready, or the old one was taken back.
pub(super) async fn request(
    core: &Core,
    name: &str,
    path: &Path,
) -> Result<Option<PluginInfo>, Failure> {
    // The core has another working directory.
    let absolute = std::path::absolute(path).map_err(|error| Failure::Usage {
        message: format!("{}: {error}", path.display()),
        hint: String::new(),
    })?;
    let path = absolute.to_str().ok_or_else(|| Failure::Usage {
        message: format!("{}: is not UTF-8", absolute.display()),
        hint: "give the program a path that is".to_owned(),
    })?;
    let question = PluginManagerUpgradeRequest {
        name: name.to_owned(),
        path: path.to_owned(),
    };
    let mut client = core.plugins();
    let answer = core
        .ask(name, TIMEOUT, question, |request| client.upgrade(request))
        .await;
    Ok(answer?.plugin)
}
