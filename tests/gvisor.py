"""What every run asks of gVisor, each of whose sandboxes starts a kernel; make test-gvisor asks all
of the contract and the security suite."""

import os

ALL = os.environ.get("AGENTD_TEST_GVISOR") == "1"
#: Of the contract suite; for attacks there is agentd selftest.
CASES = frozenset(
    {
        "test_a_kernel_of_its_own_is_another",
        "test_a_read_only_workspace",
        "test_a_snapshot_keeps_files",
        "test_a_terminal_turns_keys_into_signals",
        "test_a_wall_that_dies_is_a_cause_of_its_own",
        "test_a_workspace_is_the_hosts_directory",
        "test_closing_one_leaves_its_neighbour",
        "test_commands_have_no_capabilities",
        "test_copy_on_write_lists_and_applies",
        "test_disk_is_bounded",
        "test_files_of_the_caller_are_not_written",
        "test_forks_are_sandboxes_of_their_own",
        "test_no_network_means_none",
        "test_no_new_privs_is_set",
        "test_nothing_is_reached_that_no_rule_names",
        "test_nothing_of_the_hosts_environment_is_inside",
        "test_nothing_runs_while_it_is_paused",
        "test_our_walls_report_what_they_are_made_of",
        "test_output_comes_while_the_command_runs",
        "test_streams_are_kept_apart_byte_by_byte",
        "test_the_hosts_network_is_that",
        "test_the_kernel_agrees",
    }
)
