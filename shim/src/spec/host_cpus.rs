//! CPUs and memory nodes that CRI gives a container (`cpu.cpus`, `cpu.mems` of its limits): a kubelet's static CPU manager and
//! memory manager mean those of the node, whose numbers are others or none in a guest. The pod's cgroup on the host has them.

use serde_json::{Map, Value};

use super::number_list::{NotAList, NumberList};

/// CPUs and memory nodes of the host. `None`: all that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostCpus {
    /// CPUs.
    pub(crate) cpus: Option<NumberList>,
    /// Memory nodes.
    pub(crate) mems: Option<NumberList>,
}

/// A list that is none.
#[derive(Debug, thiserror::Error)]
#[error("linux.resources.cpu.{field}: {source}")]
pub(crate) struct HostCpusError {
    field: &'static str,
    source: NotAList,
}

impl HostCpus {
    /// These, changed as `resources` of one of CRI's containers say. What they do not name stays.
    ///
    /// # Errors
    /// What they name is no list.
    pub(crate) fn after(self, resources: Option<&Map<String, Value>>) -> Result<Self, HostCpusError> {
        let cpu = resources.and_then(|resources| resources.get("cpu"));
        let named = |field: &'static str| {
            let text = cpu.and_then(|cpu| cpu.get(field)?.as_str()).filter(|text| !text.is_empty());
            text.map(|text| text.parse().map_err(|source| HostCpusError { field, source })).transpose()
        };
        Ok(Self { cpus: named("cpus")?.or(self.cpus), mems: named("mems")?.or(self.mems) })
    }
}

/// Takes them out of the `resources` of one of CRI's containers: they are not the guest's.
pub(crate) fn take_from_resources(resources: &mut Map<String, Value>) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cpus_and_nodes_of_the_host_are_taken_out_and_every_other_limit_stays() {
        let mut resources =
            json!({"cpu": {"cpus": "4-7", "mems": "1", "shares": 512, "quota": 1}, "memory": {"limit": 1}});
        take_from_resources(resources.as_object_mut().unwrap());
        assert_eq!(resources, json!({"cpu": {"shares": 512, "quota": 1}, "memory": {"limit": 1}}));
    }

    #[test]
    fn a_change_names_what_it_changes_and_nothing_else() {
        let after = |before: HostCpus, resources: Value| before.after(resources.as_object()).unwrap();
        let created = after(HostCpus::default(), json!({"cpu": {"cpus": "4-7", "mems": ""}}));
        assert_eq!(created, HostCpus { cpus: Some("4-7".parse().unwrap()), mems: None });
        assert_eq!(after(created.clone(), json!({"cpu": {"cpus": "", "quota": 5}})), created);
        assert_eq!(after(created.clone(), json!({"memory": {"limit": 5}})), created);
        let updated = after(created, json!({"cpu": {"cpus": "2", "mems": "0"}}));
        assert_eq!(updated, HostCpus { cpus: Some("2".parse().unwrap()), mems: Some("0".parse().unwrap()) });
        let wrong = json!({"cpu": {"mems": "all"}});
        let error = updated.after(wrong.as_object()).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.cpu.mems: \"all\""), "{error}");
    }
}
