//! What the registry promises, on every database it runs on; and what is PostgreSQL's own.
//!
//! PostgreSQL is started here (dev/services/postgres.sh), or is the one that DUNLIN_TEST_POSTGRES names by a url.

mod lab; // a registry on one of the databases
mod server; // a PostgreSQL to be stopped and frozen

mod alerts;
mod devices;
mod people;
mod races; // several processes at the same time

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
    alerts::a_replayed_alert_changes_nothing_and_tells_nobody_again,
    alerts::an_alert_that_never_fired_is_cancelled_in_silence_and_each_episode_is_its_own,
    alerts::a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile,
    alerts::a_notification_waits_for_its_retry_and_is_given_up_with_its_error,
    alerts::what_is_refused_is_told_from_what_fails,
    alerts::alerts_are_listed_by_phase,
    alerts::what_is_over_is_forgotten_by_age_and_what_is_open_stays,
    races::a_name_is_given_once,
    races::children_keep_to_their_bound,
    races::of_those_who_revoke_one_token_is_left,
    races::a_stretch_that_two_apply_is_told_once,
    races::everything_is_told_in_order_while_many_write,
}
