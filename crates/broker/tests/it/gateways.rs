//! Two gateways on one log: each knows what the clients of the other want, and a client goes from one to the other.

use std::sync::Arc;

use dunlin_broker::{
    Broker, Change, GatewayNumber, Message, News, Published,
    Qos::{AtLeastOnce, AtMostOnce},
    Session, SessionId,
};

use crate::world::{LIMITS, TENANT, Wakes, key, message, published, seconds, sent, subscription, will};

struct Company {
    gateways: [Broker; 2],
    log: Vec<Vec<u8>>,
    connections: u64,
}

impl Company {
    fn new() -> Self {
        let gateways = [Broker::new(1, LIMITS), Broker::new(1, LIMITS)];
        let mut company = Self { gateways, log: Vec::new(), connections: 0 };
        for nth in 0..2 {
            let gateway = company.gateways[nth].next_gateway(0);
            company.gateways[nth].is_gateway(gateway);
            company.log(&Change::Joined { gateway, name: format!("gateway-{nth}").into(), at: seconds(0) });
        }
        company
    }

    fn number(&self, nth: usize) -> GatewayNumber {
        self.gateways[nth].me().unwrap()
    }

    /// Every gateway applies it; what it means to the first is returned.
    fn log(&mut self, change: &Change<'_>) -> News {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        let offset = self.log.len() as u64;
        let [news, _] = [0, 1].map(|nth| self.gateways[nth].apply(0, offset, &bytes, true).unwrap());
        self.log.push(bytes);
        news
    }

    /// A client that is connected to the `nth` gateway, and whose session is in no log.
    fn live(&mut self, nth: usize, client: &str) -> Arc<Session> {
        self.connections += 1;
        let connection = self.number(nth).connection(self.connections);
        let session = Session::live(SessionId::live(connection), key(client));
        session.attach(Arc::new(Wakes::default()), connection);
        session
    }

    fn listens(&mut self, nth: usize, session: &Arc<Session>, filter: &str) {
        self.gateways[nth].tenant(TENANT).subscribe(
            session,
            [(filter, subscription(AtLeastOnce))],
            seconds(0),
        );
        let (gateway, filters) = (self.number(nth), vec![filter.into()]);
        self.log(&Change::Wanted { gateway, tenant: TENANT.into(), filters });
    }

    /// A session that outlives its connection, which is one to the `nth` gateway; and that as the gateway has it.
    fn open(&mut self, nth: usize, client: &str, will_topic: Option<&str>) -> (u64, Arc<Session>) {
        self.connections += 1;
        let connection = self.number(nth).connection(self.connections);
        self.log(&Change::Opened {
            key: key(client),
            clean: false,
            expiry_seconds: 100,
            will: will_topic.map(|topic| will(topic, 0)),
            connection,
            at: seconds(0),
        });
        let session = self.session(nth, client);
        session.attach(Arc::new(Wakes::default()), connection);
        (connection, session)
    }

    fn session(&self, nth: usize, client: &str) -> Arc<Session> {
        self.gateways[nth].tenant(TENANT).session(&key(client)).expect("it was opened")
    }

    /// A client of the `nth` gateway publishes: true if that went by the log.
    fn publish(&mut self, nth: usize, message: Message) -> bool {
        let message = Arc::new(message);
        let Published::Log { chosen } = self.gateways[nth].tenant(TENANT).publish(&message, false) else {
            return false;
        };
        self.log_published(&message, chosen);
        true
    }

    fn log_published(&mut self, message: &Message, chosen: Vec<(String, SessionId)>) {
        self.log(&published(message, seconds(0), None, &chosen));
    }

    fn is_one_state(&self) {
        let end = self.log.len() as u64;
        let [one, other] = [0, 1].map(|nth| self.gateways[nth].snapshot(0, end));
        assert_eq!(one, other);
        let third = Broker::new(1, LIMITS);
        third.restore(0, &one).unwrap();
        assert_eq!(third.snapshot(0, end), one);
    }
}

fn got(session: &Session) -> Vec<String> {
    sent(session, seconds(0))
}

#[test]
fn what_clients_of_another_gateway_want_goes_by_the_log_and_nothing_else_does() {
    let mut company = Company::new();
    let (near, far) = (company.live(0, "near"), company.live(1, "far"));
    company.listens(0, &near, "a/+");
    assert!(!company.publish(0, message("a/b", "1", AtLeastOnce)), "nobody elsewhere wants it");
    company.listens(1, &far, "a/#");
    for (payload, qos) in [("2", AtLeastOnce), ("3", AtMostOnce)] {
        assert!(company.publish(0, message("a/b", payload, qos)));
    }
    assert!(!company.publish(0, message("b", "4", AtLeastOnce)));
    assert_eq!(
        (got(&near), got(&far)),
        (vec!["a/b 1".into(), "a/b 2".into(), "a/b 3".into()], vec!["a/b 2".into(), "a/b 3".to_owned()])
    );
    company.is_one_state();
    let (gateway, filters) = (company.number(1), vec!["a/#".into()]);
    company.log(&Change::Unwanted { gateway, tenant: TENANT.into(), filters });
    assert!(!company.publish(0, message("a/b", "5", AtLeastOnce)));
    company.is_one_state();
}

#[test]
fn a_message_for_those_who_share_goes_to_one_on_whichever_gateway() {
    let mut company = Company::new();
    let members = [company.live(0, "0"), company.live(1, "1"), company.live(1, "2")];
    for (member, nth) in members.iter().zip([0, 1, 1]) {
        company.listens(nth, member, "$share/g/a");
    }
    for n in 0..100 {
        company.publish(n % 2, message("a", &n.to_string(), AtLeastOnce));
    }
    let counts = members.map(|member| got(&member).len());
    assert_eq!(counts.iter().sum::<usize>(), 100);
    assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");
}

/// As a process without a gateway publishes, which knows of no subscription.
#[test]
fn what_is_published_for_nobody_in_particular_reaches_one_of_those_who_share() {
    let mut company = Company::new();
    let members = [company.live(0, "0"), company.live(1, "1")];
    for (nth, member) in members.iter().enumerate() {
        company.listens(nth, member, "$share/g/a");
    }
    for n in 0..10 {
        company.log_published(&message("a", &n.to_string(), AtLeastOnce), Vec::new());
    }
    let counts = members.map(|member| got(&member).len());
    assert!(counts.iter().sum::<usize>() == 10 && counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn a_will_for_those_who_share_reaches_one_of_them() {
    for client in 0..8 {
        let mut company = Company::new();
        let members = [company.live(0, "0"), company.live(1, "1")];
        for (nth, member) in members.iter().enumerate() {
            company.listens(nth, member, "$share/g/gone");
        }
        let (connection, session) = company.open(0, &client.to_string(), Some("gone"));
        let (session, at) = (session.id, seconds(client));
        company.log(&Change::Closed { session, connection, at, with_will: true, expiry_seconds: None });
        assert_eq!(members.map(|member| got(&member).len()).iter().sum::<usize>(), 1);
    }
}

#[test]
fn a_client_goes_on_at_another_gateway_where_it_was() {
    let mut company = Company::new();
    let (first, session) = company.open(0, "client", None);
    let subscribed = [("a".into(), subscription(AtLeastOnce))];
    let at = seconds(0);
    company.log(&Change::Subscribed { session: session.id, subscriptions: subscribed.into(), at });
    for payload in ["1", "2", "3"] {
        assert!(company.publish(1, message("a", payload, AtLeastOnce)));
    }
    assert_eq!(got(&session), ["a 1", "a 2", "a 3"]);
    company.log(&Change::Acknowledged { session: session.id, number: 1 });
    // Its gateway is not asked, or does not answer.
    let (second, there) = company.open(1, "client", None);
    assert_eq!((session.is_elsewhere(), there.is_elsewhere()), (true, false));
    let publishes = there.look(|outbox| {
        std::iter::from_fn(|| outbox.next(10, seconds(0))).map(|sent| format!("{sent:?}")).collect::<Vec<_>>()
    });
    assert_eq!(publishes.len(), 2);
    assert!(publishes.iter().all(|sent| sent.contains("duplicate: true")), "it may have had them");
    // What the first connection says of its end comes late, and says nothing of the second.
    company.log(&Change::Closed {
        session: session.id,
        connection: first,
        at,
        with_will: true,
        expiry_seconds: Some(0),
    });
    assert!(session.is_elsewhere() && company.gateways[1].due(0, seconds(1_000)).is_empty());
    company.log(&Change::Closed {
        session: there.id,
        connection: second,
        at,
        with_will: true,
        expiry_seconds: None,
    });
    assert!(!session.is_elsewhere());
    company.is_one_state();
}

#[test]
fn a_gateway_that_is_gone_leaves_no_connection_and_no_wish() {
    let mut company = Company::new();
    let near = company.live(0, "near");
    company.listens(0, &near, "gone/+");
    let far = company.live(1, "far");
    company.listens(1, &far, "#");
    let (connection, _) = company.open(1, "client", Some("gone/client"));
    let gone = company.number(1);
    assert_eq!(company.log(&Change::Gone { gateway: gone, at: seconds(9) }), News::Gone(gone));
    assert_eq!(got(&near), ["gone/client will"]);
    assert!(!company.session(0, "client").is_elsewhere());
    assert!(!company.publish(0, message("a", "x", AtLeastOnce)));
    // What it has said, not knowing that, opens nothing.
    let news = company.log(&Change::Opened {
        key: key("late"),
        clean: false,
        expiry_seconds: 100,
        will: None,
        connection,
        at: seconds(9),
    });
    assert_eq!(news, News::Nothing);
    assert!(company.gateways[0].tenant(TENANT).session(&key("late")).is_none());
    company.is_one_state();
}

#[test]
fn a_gateway_that_starts_again_is_another_one_and_takes_the_place_of_the_first() {
    let mut company = Company::new();
    let (_, session) = company.open(1, "client", None);
    let again = company.gateways[0].next_gateway(0);
    company.log(&Change::Joined { gateway: again, name: "gateway-1".into(), at: seconds(1) });
    assert_eq!(company.gateways[0].gateways(0), [company.number(0), again]);
    assert!(!session.is_elsewhere() && !company.session(0, "client").is_elsewhere());
    // A number is never given twice.
    company.log(&Change::Joined { gateway: again, name: "another".into(), at: seconds(1) });
    assert!(!company.gateways[0].has_gateway(0, again, "another"));
    company.log(&Change::Gone { gateway: again, at: seconds(1) });
    assert!(company.gateways[0].next_gateway(0) > again);
    company.is_one_state();
}

#[test]
fn what_others_have_applied_is_known() {
    let mut company = Company::new();
    let [one, other] = [0, 1].map(|nth| company.number(nth));
    let applied = |company: &Company| company.gateways[0].applied_elsewhere(0);
    assert_eq!(applied(&company), 0);
    company.log(&Change::Heard { gateway: one, applied: 9, sent: 0 });
    assert_eq!(applied(&company), 0, "its own word does not count");
    company.log(&Change::Heard { gateway: other, applied: 3, sent: 0 });
    assert_eq!(applied(&company), 3);
    company.log(&Change::Gone { gateway: other, at: seconds(0) });
    assert_eq!(applied(&company), u64::MAX, "nobody waits for who is gone");
}
