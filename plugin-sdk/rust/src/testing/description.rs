//! What a plugin says of a service, as tests look at it.

use std::time::Duration;

use core_proto::v1;
use serde_json::Value;

/// A service, as its plugin described it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServiceDescription {
    /// Full name.
    pub name: String,
    /// One line.
    pub summary: String,
    /// Names of the positional arguments.
    pub parameters: Vec<String>,
    /// JSON Schema of the arguments; null if there is none.
    pub input_schema: Value,
    /// JSON Schema of the result; null if there is none.
    pub output_schema: Value,
    /// May be called twice.
    pub idempotent: bool,
    /// Changes nothing.
    pub read_only: bool,
    /// Deadline of calls that give none.
    pub default_timeout: Option<Duration>,
}

impl ServiceDescription {
    pub(super) fn new(description: &v1::ServiceDescription) -> Self {
        let schema = |text: &[u8]| serde_json::from_slice(text).unwrap_or_default();
        Self {
            name: description.name.clone(),
            summary: description.summary.clone(),
            parameters: description.parameters.clone(),
            input_schema: schema(&description.input_schema),
            output_schema: schema(&description.output_schema),
            idempotent: description.idempotent,
            read_only: description.read_only,
            default_timeout: description
                .default_timeout
                .and_then(|time| Duration::try_from(time).ok()),
        }
    }
}
