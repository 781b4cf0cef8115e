//! CPUs and memory nodes that CRI gives a container (`cpu.cpus`, `cpu.mems` of its limits): a kubelet's static CPU manager and
//! memory manager mean those of the node, whose numbers are others or none in a guest.

use std::sync::Once;

use serde_json::{Map, Value};

static TOLD: Once = Once::new();

/// Takes them out of the `resources` of one of CRI's containers, and says once in this shim's life that it does.
pub(crate) fn take_from_resources(resources: &mut Map<String, Value>) {
    let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) else { return };
    for field in ["cpus", "mems"] {
        let list = cpu.remove(field);
        if let Some(list) = list.as_ref().and_then(Value::as_str).filter(|list| !list.is_empty()) {
            TOLD.call_once(|| {
                tracing::warn!(
                    field,
                    list,
                    "CPUs and memory nodes that a pod is given are not heeded: its VMM runs on all"
                );
            });
        }
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
}
