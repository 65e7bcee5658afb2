//! What a provider says of a service.

use std::time::Duration;

use bytes::Bytes;

use crate::types::ServiceName;

/// A service as its provider describes it; see `service_registry.proto` for each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDescription {
    /// Full name.
    pub name: ServiceName,
    /// One line for people.
    pub summary: String,
    /// JSON Schema of the arguments; may be empty.
    pub input_schema: Bytes,
    /// JSON Schema of the result; may be empty.
    pub output_schema: Bytes,
    /// Names of the positional arguments.
    pub parameters: Vec<String>,
    /// Calling twice is as calling once.
    pub idempotent: bool,
    /// It changes nothing.
    pub read_only: bool,
    /// Deadline for calls that give none.
    pub default_timeout: Option<Duration>,
    /// Not empty: callers should move away.
    pub deprecation: String,
}

impl ServiceDescription {
    /// A description that is only a name.
    #[must_use]
    pub fn bare(name: ServiceName) -> Self {
        Self {
            name,
            summary: String::new(),
            input_schema: Bytes::new(),
            output_schema: Bytes::new(),
            parameters: Vec::new(),
            idempotent: false,
            read_only: false,
            default_timeout: None,
            deprecation: String::new(),
        }
    }
}
