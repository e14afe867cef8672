use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

use dunlin_model::DeviceId;
use futures::{channel::oneshot, future::BoxFuture};

use super::*;
use crate::{directory::ChildAnswer, tls::Certified};

/// A directory that counts questions and answers when it is told to.
#[derive(Debug, Default)]
struct Book {
    asked: AtomicUsize,
    /// Whom the next question waits for.
    held: Mutex<Option<oneshot::Receiver<()>>>,
    closed: std::sync::atomic::AtomicBool,
}

impl Directory for Book {
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Relaxed);
            let answer = match (self.closed.load(Relaxed), &*token) {
                (true, _) => Err(Denied::Disabled),
                (false, "stranger") => Err(Denied::UnknownToken),
                (false, name) => Ok(Admitted {
                    tenant: "t".parse().unwrap(),
                    device: name.parse().unwrap(),
                    device_type: "default".parse().unwrap(),
                    speaks_for_children: false,
                }),
            };
            let held = self.held.lock().unwrap().take();
            if let Some(held) = held {
                held.await.unwrap();
            }
            answer
        })
    }

    fn admit_certified(&self, _: &Certified) -> BoxFuture<'_, Result<Admitted, Denied>> {
        unreachable!("no certificates here")
    }

    fn children(&self, _: &Admitted, _: Vec<DeviceId>) -> BoxFuture<'_, Result<Vec<ChildAnswer>, Denied>> {
        unreachable!("no children here")
    }
}

struct Lab {
    admissions: Admissions,
    book: Arc<Book>,
    seconds: Arc<AtomicI64>,
}

impl Lab {
    fn new(config: AdmissionConfig) -> Self {
        let (book, seconds) = (Arc::new(Book::default()), Arc::new(AtomicI64::new(1_700_000_000)));
        let now = seconds.clone();
        let clock = Clock::new(move || Timestamp::from_millis(now.load(Relaxed) * 1_000).unwrap());
        Self { admissions: Admissions::new(&config, book.clone(), clock), book, seconds }
    }

    async fn comes(&self, token: &str) -> Result<String, Denied> {
        let who = self.admissions.admit(&Credential::Token(token.into())).await?;
        Ok(who.device.to_string())
    }

    fn asked(&self) -> usize {
        self.book.asked.load(Relaxed)
    }
}

#[tokio::test]
async fn who_comes_again_is_known_until_the_time_is_over() {
    let lab = Lab::new(AdmissionConfig { valid_seconds: 30, ..<_>::default() });
    for _ in 0..3 {
        assert_eq!(lab.comes("a").await.unwrap(), "a");
    }
    assert_eq!(lab.asked(), 1);
    assert_eq!(lab.comes("b").await.unwrap(), "b");
    assert_eq!(lab.asked(), 2);
    lab.seconds.fetch_add(30, Relaxed);
    lab.comes("a").await.unwrap();
    assert_eq!(lab.asked(), 3);
    lab.seconds.fetch_sub(3_600, Relaxed);
    lab.comes("a").await.unwrap();
    assert_eq!(lab.asked(), 4, "a clock that is set back makes nothing valid for longer");
}

#[tokio::test]
async fn strangers_are_asked_about_each_time_and_a_revocation_holds_at_once() {
    let lab = Lab::new(AdmissionConfig::default());
    for _ in 0..2 {
        assert_eq!(lab.comes("stranger").await, Err(Denied::UnknownToken));
    }
    assert_eq!(lab.asked(), 2);
    lab.comes("a").await.unwrap();
    lab.book.closed.store(true, Relaxed);
    lab.admissions.forget_all();
    assert_eq!(lab.comes("a").await, Err(Denied::Disabled));
}

#[tokio::test]
async fn an_answer_from_before_a_revocation_is_not_remembered() {
    let lab = Lab::new(AdmissionConfig::default());
    let (answer, held) = oneshot::channel();
    *lab.book.held.lock().unwrap() = Some(held);
    let revoked = async {
        while lab.asked() == 0 {
            tokio::task::yield_now().await;
        }
        lab.book.closed.store(true, Relaxed);
        lab.admissions.forget_all();
        answer.send(()).unwrap();
    };
    let (before, ()) = futures::join!(lab.comes("a"), revoked);
    assert_eq!(before.unwrap(), "a");
    assert_eq!(lab.comes("a").await, Err(Denied::Disabled));
}

#[tokio::test]
async fn nothing_is_remembered_where_nothing_is_valid_and_never_more_than_the_bound() {
    let lab = Lab::new(AdmissionConfig { valid_seconds: 0, ..<_>::default() });
    lab.comes("a").await.unwrap();
    lab.comes("a").await.unwrap();
    assert_eq!(lab.asked(), 2);

    let lab = Lab::new(AdmissionConfig { credentials_max: 10, ..<_>::default() });
    for n in 0..1_000 {
        lab.comes(&format!("d{n}")).await.unwrap();
    }
    assert!(lab.admissions.0.lock().known.len() <= 10);
    lab.comes("d999").await.unwrap();
    assert_eq!(lab.asked(), 1_000);
}
