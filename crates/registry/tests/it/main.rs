//! What the registry promises, on every database it runs on; and what is PostgreSQL's own.
//!
//! PostgreSQL is started here (dev/services/postgres.sh), or is the one that DUNLIN_TEST_POSTGRES names by a url.

mod lab; // a registry on one of the databases
mod network; // that forgets
mod server; // a PostgreSQL to be stopped and frozen

mod alerts;
mod commands;
mod devices;
mod people;
mod races; // several processes at the same time
mod rules;

mod copy; // from a file into PostgreSQL
mod failures; // a PostgreSQL that is not there
mod postgres;
mod sqlite;

use lab::Lab;

macro_rules! on_both {
    ($($of:ident::$test:ident,)*) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                let lab = crate::Lab::sqlite().await;
                crate::$of::$test(&lab).await;
            })*
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                let lab = crate::Lab::postgres().await;
                crate::$of::$test(&lab).await;
                lab.drop_schema().await;
            })*
        }
    };
}

on_both! {
    people::a_persons_token_says_tenant_and_scope,
    people::tenants_are_in_the_order_of_their_bytes,
    people::what_works_says_so,
    devices::a_device_is_known_by_its_tokens_and_across_a_reopen,
    devices::names_are_unique_within_a_tenant_only,
    devices::a_page_goes_on_after_the_last_name,
    devices::what_belongs_to_nobody_is_refused,
    devices::a_gateway_speaks_for_its_own_children_only,
    devices::a_gateway_has_so_many_children_and_no_more,
    commands::a_command_is_kept_as_it_was_sent_and_expires,
    commands::a_device_that_is_not_there_gets_no_command,
    commands::a_device_has_so_many_open_commands_and_no_more,
    commands::replies_come_to_the_same_however_often_and_in_whatever_order,
    commands::what_names_no_command_of_its_device_is_counted_and_changes_nothing,
    commands::commands_are_listed_from_the_newest_on,
    commands::old_commands_are_forgotten_in_portions,
    alerts::an_alert_comes_back_as_it_was_put_and_a_fingerprint_has_one_that_is_open,
    alerts::what_people_do_is_legal_or_refused_and_written_down,
    alerts::a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile,
    alerts::a_message_of_many_has_what_it_had_when_it_closed,
    alerts::what_follows_a_message_of_many_waits_for_it_and_others_do_not,
    alerts::a_message_of_many_lets_what_its_alerts_said_before_it_go_first,
    alerts::a_silence_is_in_force_in_its_time_and_wakes_what_waits_for_its_end,
    alerts::what_is_refused_is_told_from_what_fails,
    alerts::what_is_over_is_forgotten_by_age_and_what_is_open_stays,
    rules::a_rule_has_versions_and_one_in_force,
    rules::a_rule_carries_what_people_say_and_what_was_measured,
    races::a_name_is_given_once,
    races::children_keep_to_their_bound,
    races::open_commands_keep_to_their_bound,
    races::two_who_record_the_same_replies_do_not_wait_for_each_other_for_ever,
    races::of_those_who_revoke_one_token_is_left,
    races::every_text_of_a_rule_gets_a_version,
    races::a_link_works_once_and_one_acknowledges,
    races::all_have_one_secret,
    races::a_timer_is_taken_once,
    races::a_stretch_that_two_apply_is_told_once,
    races::everything_is_told_in_order_while_many_write,
    races::who_gives_up_leaves_no_transaction_behind,
}
