//! No field of the OCI runtime spec is forgotten: each that the types know is heeded, refused by name, or the host's.

mod table;
mod walk;

use oci_spec::runtime::Spec;
use serde_json::Value;

use self::table::{Change, Fate};
use super::cgroup;
use super::plan::{ContainerPlan, WindowSize, parse};
use crate::error::SpecError;

/// Everything that the guest makes of a spec, as text.
fn outcome(spec: &Value) -> Result<String, SpecError> {
    let spec: Spec = parse(spec.to_string().as_bytes())?.value;
    let mut plan = ContainerPlan::from_spec("c1", &spec, Some(WindowSize { columns: 0, rows: 0 }))?;
    let resources = std::mem::take(&mut plan.resources);
    Ok(format!("{plan:?} {}", cgroup::outcome(&resources)?))
}

/// The base with one field changed.
fn changed(change: &Change) -> Value {
    let mut spec = table::base();
    let mut place = &mut spec;
    for name in change.pointer.split('/').skip(1) {
        place = match place {
            Value::Array(list) => &mut list[name.parse::<usize>().unwrap()],
            other => &mut other[name],
        };
    }
    *place = change.value.clone();
    spec
}

/// Whether a field is the one that the pointer names or, where the whole is the same, below it.
fn covers(change: &Change, field: &str) -> bool {
    let (mut names, mut pointed) = (field.split('/'), change.pointer.split('/'));
    let same = pointed.all(|name| names.next().is_some_and(|field| field == "*" || field == name));
    same && (change.fate != Fate::Heeded || names.next().is_none())
}

/// `/linux/devices/0/uid` as errors have it: `linux.devices[0].uid`.
fn named(pointer: &str) -> String {
    let mut name = String::new();
    for part in pointer.split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(index) => name.push_str(&format!("[{index}]")),
            Err(_) if name.is_empty() => name.push_str(part),
            Err(_) => name.push_str(&format!(".{part}")),
        }
    }
    name
}

/// Whether an error names the field or the object that it is in.
fn names(error: &SpecError, pointer: &str) -> bool {
    let message = error.to_string();
    let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
    let parents = [pointer, parent].into_iter().filter(|pointer| pointer.matches('/').count() > 0);
    parents.map(named).any(|name| message.starts_with(&name))
}

#[test]
fn every_field_of_the_spec_has_an_entry_in_the_table() {
    let (fields, changes) = (walk::fields::<Spec>(), table::changes());
    assert!(fields.len() > 150, "the walk has found {} fields", fields.len());
    let forgotten: Vec<_> =
        fields.iter().filter(|field| !changes.iter().any(|change| covers(change, field))).collect();
    assert!(forgotten.is_empty(), "{forgotten:#?}");
    let invented: Vec<_> = changes
        .iter()
        .filter(|change| !fields.iter().any(|field| covers(change, field)))
        .map(|change| change.pointer)
        .collect();
    assert!(invented.is_empty(), "{invented:#?}");
}

#[test]
fn what_a_field_says_is_heeded_or_refused_by_name() {
    let before = outcome(&table::base()).unwrap();
    let mut wrong = Vec::new();
    for change in table::changes() {
        let after = outcome(&changed(&change));
        let fine = match (&after, change.fate) {
            (Ok(after), Fate::Heeded) => *after != before,
            (Err(error), Fate::Heeded | Fate::Refused) => names(error, change.pointer),
            (Ok(_), Fate::Refused) => false,
            (Ok(after), Fate::Elsewhere(_) | Fate::Meaningless(_)) => *after == before,
            (Err(_), Fate::Elsewhere(_) | Fate::Meaningless(_)) => false,
        };
        if !fine {
            let after = after.map(|after| after == before);
            wrong.push(format!("{}: {:?}: same: {after:?}", change.pointer, change.fate));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_heeded_elsewhere_has_a_test_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = String::new();
    for folder in ["tests/src/e2e", "shim/src", "agent/tests"] {
        collect(&root.join(folder), &mut sources);
    }
    for change in table::changes() {
        if let Fate::Elsewhere(test) = change.fate {
            let exists = sources.contains(&format!("\"{test}\"")) || sources.contains(&format!("fn {test}("));
            assert!(exists, "{}: there is no test {test}", change.pointer);
        }
    }
}

fn collect(directory: &std::path::Path, sources: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else {
            sources.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
