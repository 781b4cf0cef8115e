//! A container's file system under other people's programs and suites. docs/limits.md says where it differs from ext4.

mod privileges;
mod programs;
mod suites;
mod volumes;

use super::Test;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_root_file_system_passes_a_posix_suite", check: suites::posix },
    Test { name: "what_is_written_anywhere_in_a_file_is_read_back", check: suites::exerciser },
    Test { name: "git_tar_sqlite_and_a_package_manager_find_what_they_rely_on", check: programs::tools },
    Test {
        name: "writes_take_set_id_bits_and_capabilities_as_on_any_file_system",
        check: privileges::lost_by_writes,
    },
    Test {
        name: "who_writes_to_a_program_does_not_become_its_owner",
        check: privileges::lost_before_the_next_run,
    },
    Test { name: "names_holes_and_full_disks_are_as_on_any_file_system", check: programs::edges },
    Test {
        name: "two_containers_of_a_pod_that_map_one_file_share_its_memory",
        check: volumes::mapped_by_two,
    },
    Test { name: "a_quota_of_the_host_is_passed_through_as_such", check: volumes::quota },
];

/// Flags of `ctr run` by which a container finds this machine's own programs, read-only.
pub(super) fn with_programs_of_this_machine() -> Vec<String> {
    [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")]
        .into_iter()
        .flat_map(|(from, to)| {
            ["--mount".to_owned(), format!("type=bind,src={from},dst={to},options=rbind:ro")]
        })
        .collect()
}
