//! Whether the registry answers. Without it nobody new comes in and alerts wait, while those who are connected notice
//! nothing: only who asks can tell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_registry::Registry;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry as Metrics,
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

const ASK_EVERY: Duration = Duration::from_secs(1);
/// An answer that takes longer helps no device.
const ANSWER_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct RegistryWatch {
    answers: Arc<AtomicBool>,
    asking: JoinHandle<()>,
}

impl RegistryWatch {
    pub(crate) fn start(registry: Registry, metrics: &mut Metrics) -> Self {
        let (up, failures) = (Gauge::<i64>::default(), Counter::<u64>::default());
        up.set(1);
        metrics.register("dunlin_registry_up", "1 while the registry answers", up.clone());
        metrics.register(
            "dunlin_registry_unanswered",
            "Questions, one a second, to which there was no answer",
            failures.clone(),
        );
        let answers = Arc::new(AtomicBool::new(true));
        let told = answers.clone();
        let asking = tokio::spawn(async move {
            loop {
                sleep(ASK_EVERY).await;
                let error = match timeout(ANSWER_MAX, registry.check()).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(dunlin_model::chain(&error)),
                    Err(_) => Some(format!("no answer within {} s", ANSWER_MAX.as_secs())),
                };
                let before = told.swap(error.is_none(), Relaxed);
                up.set(i64::from(error.is_none()));
                match error {
                    None if !before => tracing::info!("the registry answers again"),
                    None => {}
                    Some(error) => {
                        failures.inc();
                        if before {
                            tracing::error!(
                                error,
                                "the registry does not answer: nobody new comes in, alerts wait"
                            );
                        }
                    }
                }
            }
        });
        Self { answers, asking }
    }

    pub(crate) fn answers(&self) -> bool {
        self.answers.load(Relaxed)
    }
}

impl Drop for RegistryWatch {
    fn drop(&mut self) {
        self.asking.abort();
    }
}
