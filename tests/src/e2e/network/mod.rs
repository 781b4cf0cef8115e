//! The pod's network: what CNI put into its network namespace is there inside, and everybody can talk to it.

mod kinds;
mod late;
pub(super) mod peers;
mod refusals;
pub(super) mod rules;

use super::Test;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_bridged_container_has_what_cni_gave_it_and_talks_to_everybody", check: kinds::bridge },
    Test { name: "a_container_has_its_routes_over_a_point_to_point_link", check: kinds::point_to_point },
    Test { name: "a_container_has_every_interface_of_its_namespace", check: kinds::several },
    Test { name: "a_namespace_with_loopback_alone_is_a_network_too", check: kinds::loopback },
    Test {
        name: "a_network_that_cannot_be_carried_into_the_guest_is_refused_by_name",
        check: refusals::refused,
    },
    Test {
        name: "packet_filters_that_would_see_nothing_of_the_guest_are_refused_by_name",
        check: refusals::packet_filters,
    },
    Test {
        name: "interfaces_that_come_between_creation_and_start_are_the_containers",
        check: late::interfaces,
    },
    Test { name: "a_killed_shim_gives_the_interfaces_back", check: refusals::killed_shim },
];
