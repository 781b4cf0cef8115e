//! Pods, as a kubelet has containerd's CRI plugin make them.

mod devices;
mod fixture;
mod installation;
mod kubelet;
mod lifecycle;
mod overhead;
mod pause;
mod processes;
mod recovery;
mod sandbox_api;
mod scenarios;
mod security;
mod sharing;
mod streaming;
mod volumes;

use super::Test;

pub(super) const TESTS: &[Test] = &[
    Test { name: "the_containers_of_a_pod_share_what_pods_share", check: sharing::namespaces },
    Test { name: "the_containers_of_a_pod_may_see_each_others_processes", check: sharing::processes },
    Test {
        name: "a_container_may_be_put_beside_the_processes_of_another_to_debug_it",
        check: sharing::targeted,
    },
    Test { name: "a_pod_with_a_user_namespace_is_refused_by_name", check: sharing::users },
    Test { name: "a_pod_with_a_namespace_of_the_hosts_is_refused_by_name", check: sharing::refused },
    Test { name: "containers_come_and_go_in_a_pod_in_any_order", check: lifecycle::any_order },
    Test {
        name: "a_pod_is_stopped_and_removed_with_what_runs_in_it",
        check: lifecycle::stopped_with_contents,
    },
    Test { name: "a_command_in_a_pods_container_is_answered_or_ended_in_time", check: processes::exec },
    Test { name: "a_pods_container_writes_its_log_and_is_counted", check: processes::logs_and_figures },
    Test { name: "exec_attach_and_port_forward_stream_as_kubectl_has_them", check: streaming::streams },
    Test { name: "a_pods_containers_have_the_rights_that_were_asked_for", check: security::rights },
    Test { name: "volumes_are_as_a_kubelet_has_prepared_them", check: volumes::kinds },
    Test {
        name: "a_block_device_of_the_host_is_a_containers_and_free_again_when_that_is_gone",
        check: devices::volumes,
    },
    Test { name: "pods_outlive_containerd_and_a_dead_one_is_known_as_dead", check: recovery::recovers },
    Test { name: "probes_and_restarts_are_as_a_kubelet_drives_them", check: kubelet::probes_and_restarts },
    Test { name: "a_network_that_is_half_made_leaves_nothing", check: kubelet::half_made_network },
    Test { name: "a_node_on_which_it_is_installed_runs_pods_by_its_handler", check: installation::node },
    Test { name: "a_pods_pause_container_is_no_program_of_its_image", check: pause::nothing_of_its_image },
    Test { name: "a_limit_below_what_a_container_needs_is_told_in_one_error", check: kubelet::too_small },
    Test {
        name: "a_pod_takes_no_more_beside_its_containers_than_its_runtimeclass_says",
        check: overhead::of_runtimeclass,
    },
    Test { name: "a_pod_may_be_made_without_a_container_that_makes_it", check: sandbox_api::pod },
    Test { name: "redis_and_its_client_in_one_pod", check: scenarios::redis },
    Test { name: "nginx_answers_behind_a_port_of_the_host", check: scenarios::web },
    Test { name: "pods_one_after_another_leave_nothing", check: scenarios::one_after_another },
    Test { name: "pods_at_once_talk_over_the_bridge", check: scenarios::neighbours },
];
