//! Services.

use core_proto::v1;

use super::{BadField, check_size, duration, duration_to_proto, time_to_proto};
use crate::service_registry::{ServiceDescription, ServiceInfo};
use crate::types::ServiceName;

/// Largest JSON Schema of a description, in bytes.
const MAX_SCHEMA_BYTES: usize = 16 << 10;
/// Largest text of a description, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 10;
/// Most positional arguments of a description.
const MAX_PARAMETERS: usize = 64;

pub(in crate::grpc) fn description(
    service: v1::ServiceDescription,
) -> Result<ServiceDescription, BadField> {
    check_size("summary", service.summary.len(), MAX_TEXT_BYTES)?;
    check_size("deprecation", service.deprecation.len(), MAX_TEXT_BYTES)?;
    check_size("input_schema", service.input_schema.len(), MAX_SCHEMA_BYTES)?;
    check_size(
        "output_schema",
        service.output_schema.len(),
        MAX_SCHEMA_BYTES,
    )?;
    check_size(
        "parameters",
        service.parameters.iter().map(String::len).sum(),
        MAX_TEXT_BYTES,
    )?;
    if service.parameters.len() > MAX_PARAMETERS {
        let why = format!("more than {MAX_PARAMETERS} entries");
        return Err(BadField::Malformed {
            field: "parameters",
            why,
        });
    }
    Ok(ServiceDescription {
        name: ServiceName::parse(&service.name)?,
        summary: service.summary,
        input_schema: service.input_schema,
        output_schema: service.output_schema,
        parameters: service.parameters,
        idempotent: service.idempotent,
        read_only: service.read_only,
        default_timeout: duration("default_timeout", service.default_timeout)?,
        deprecation: service.deprecation,
    })
}

fn description_to_proto(service: &ServiceDescription) -> v1::ServiceDescription {
    v1::ServiceDescription {
        name: service.name.as_str().to_owned(),
        summary: service.summary.clone(),
        input_schema: service.input_schema.clone(),
        output_schema: service.output_schema.clone(),
        parameters: service.parameters.clone(),
        idempotent: service.idempotent,
        read_only: service.read_only,
        default_timeout: service.default_timeout.and_then(duration_to_proto),
        deprecation: service.deprecation.clone(),
    }
}

pub(in crate::grpc) fn info_to_proto(service: &ServiceInfo) -> v1::ServiceInfo {
    let (calls, errors, in_flight, total_time) = service.stats.snapshot();
    let latency = service.stats.latency().into_iter();
    let latency = latency.map(|(at_most, calls)| v1::LatencyBucket {
        at_most: at_most.and_then(duration_to_proto),
        calls,
    });
    v1::ServiceInfo {
        description: Some(description_to_proto(&service.description)),
        provider: service.provider.to_string(),
        available: service.available,
        registered_at: service.registered_at.map(time_to_proto),
        stats: Some(v1::ServiceStats {
            calls,
            errors,
            in_flight,
            total_time: duration_to_proto(total_time),
            latency: latency.collect(),
        }),
    }
}
