//! Permissions, one by one.

use core_proto::v1;

use super::{BadField, time_to_proto};
use crate::config::{Need, Permission};
use crate::security::Standing;
use std::time::{Duration, SystemTime};

/// One that somebody asks for, and whether it copes without.
pub(in crate::grpc) fn request(
    permission: &v1::Permission,
) -> Result<(Permission, Need), BadField> {
    let parsed = Permission::parse(&permission.action, &permission.resource);
    let parsed = parsed.map_err(|error| BadField::Malformed {
        field: "permissions",
        why: error.to_string(),
    })?;
    let need = if permission.optional {
        Need::Optional
    } else {
        Need::Required
    };
    Ok((parsed, need))
}

/// Several that are to be granted or taken back.
pub(in crate::grpc) fn parse(permissions: &[v1::Permission]) -> Result<Vec<Permission>, BadField> {
    let parsed = permissions.iter().map(|one| Ok(request(one)?.0));
    parsed.collect()
}

pub(in crate::grpc) fn permission(permission: &Permission) -> v1::Permission {
    v1::Permission {
        action: permission.act().as_str().to_owned(),
        resource: permission.resource().to_owned(),
        optional: false,
    }
}

pub(in crate::grpc) fn permissions(permissions: &[Permission]) -> Vec<v1::Permission> {
    permissions.iter().map(permission).collect()
}

pub(in crate::grpc) fn standing(standing: Standing) -> v1::PermissionInfo {
    let optional = standing.asked == Some(Need::Optional);
    let time = |seconds| time_to_proto(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    v1::PermissionInfo {
        permission: Some(v1::Permission {
            optional,
            ..permission(&standing.permission)
        }),
        asked: standing.asked.is_some(),
        granted_by: standing.granted_by,
        denied: standing.denied,
        granted_at: standing.granted_at.map(time),
    }
}
