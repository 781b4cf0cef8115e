//! Whose the files of a bind mount are: `mounts[].uidMappings` and `gidMappings`, and the options `idmap` and `ridmap`.
//!
//! The host maps them where it binds the volume, so that the guest sees mapped ids, and need not know.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::mount::IdMapping;

/// The most ranges of a mapping (user_namespaces(7), since Linux 4.15).
const RANGES_MAX: usize = 340;

/// The users' and the groups' ranges in a spec, as it has them.
pub(super) type Mappings = (Value, Value);

/// Mappings that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MappingError {
    /// One without the other.
    #[error("uidMappings and gidMappings: both are needed, or neither")]
    Half,
    /// Asked for, and not said.
    #[error(
        "options: idmap without uidMappings and gidMappings needs those of the container's user namespace"
    )]
    Missing,
    /// Not ranges.
    #[error("{0}: must be at most {RANGES_MAX} ranges with containerID, hostID and size, each below 2^32")]
    Malformed(&'static str),
}

/// Those of the container's user namespace; null where it has none.
pub(super) fn of_container(spec: &Map<String, Value>) -> Mappings {
    let of = |field| spec.get("linux").and_then(|linux| linux.get(field)).cloned().unwrap_or_default();
    (of("uidMappings"), of("gidMappings"))
}

/// Takes the mappings out of a bind mount, and the options that ask for them.
///
/// # Errors
/// They are none.
pub(super) fn take(
    mount: &mut Map<String, Value>,
    container: &Mappings,
) -> Result<Option<IdMapping>, MappingError> {
    let mut own = |field| mount.remove(field).unwrap_or_default();
    let own = (own("uidMappings"), own("gidMappings"));
    let (mut asked, mut recursive) = (false, false);
    if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
        options.retain(|option| {
            asked |= option == "idmap" || option == "ridmap";
            recursive |= option == "ridmap";
            option != "idmap" && option != "ridmap"
        });
    }
    let (users, groups) = match (is_given(&own.0), is_given(&own.1)) {
        (true, true) => &own,
        (false, false) if !asked => return Ok(None),
        (false, false) if is_given(&container.0) && is_given(&container.1) => container,
        (false, false) => return Err(MappingError::Missing),
        _ => return Err(MappingError::Half),
    };
    let lines = |ranges, field| lines(ranges).ok_or(MappingError::Malformed(field));
    Ok(Some(IdMapping {
        users: lines(users, "uidMappings")?,
        groups: lines(groups, "gidMappings")?,
        recursive,
    }))
}

fn is_given(ranges: &Value) -> bool {
    !ranges.is_null() && ranges != &Value::Array(Vec::new())
}

fn lines(ranges: &Value) -> Option<String> {
    let ranges = ranges.as_array().filter(|ranges| ranges.len() <= RANGES_MAX)?;
    let mut lines = String::new();
    for range in ranges {
        let number = |field| u32::try_from(range.get(field)?.as_u64()?).ok();
        writeln!(lines, "{} {} {}", number("containerID")?, number("hostID")?, number("size")?).ok()?;
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(mut mount: Value, container: &Mappings) -> (Result<Option<IdMapping>, MappingError>, Value) {
        let taken = take(mount.as_object_mut().unwrap(), container);
        (taken, mount)
    }

    fn ranges(host: u32) -> Value {
        json!([{"containerID": 0, "hostID": host, "size": 10}])
    }

    #[test]
    fn a_mounts_own_mappings_go_before_the_containers_and_do_not_reach_the_guest() {
        let container = (ranges(7000), ranges(8000));
        let mount =
            json!({"options": ["rbind", "idmap"], "uidMappings": ranges(1), "gidMappings": ranges(2)});
        let (taken, left) = run(mount, &container);
        let expected = IdMapping { users: "0 1 10\n".into(), groups: "0 2 10\n".into(), recursive: false };
        assert_eq!(taken.unwrap(), Some(expected));
        assert_eq!(left, json!({"options": ["rbind"]}));
        let (taken, _) = run(json!({"options": ["ridmap"]}), &container);
        let expected =
            IdMapping { users: "0 7000 10\n".into(), groups: "0 8000 10\n".into(), recursive: true };
        assert_eq!(taken.unwrap(), Some(expected));
        assert_eq!(run(json!({"options": ["ro"]}), &container).0.unwrap(), None);
    }

    #[test]
    fn mappings_that_are_none_are_refused_by_name() {
        let none = || (Value::Null, Value::Null);
        for (mount, words) in [
            (json!({"options": ["idmap"]}), "user namespace"),
            (json!({"uidMappings": ranges(1)}), "both"),
            (json!({"uidMappings": ranges(1), "gidMappings": [{"hostID": 1, "size": 1}]}), "gidMappings"),
            (
                json!({"uidMappings": [{"containerID": 0, "hostID": 1_u64 << 32, "size": 1}], "gidMappings": ranges(1)}),
                "uidMappings",
            ),
            (
                json!({"uidMappings": vec![json!({"containerID": 0, "hostID": 1, "size": 1}); 341], "gidMappings": ranges(1)}),
                "340",
            ),
        ] {
            let message = run(mount, &none()).0.unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
