//! Another number of partitions than before: what is known of a device goes where its slot is now.
//!
//! Before anybody may append, each old partition is read to its end and what it knows is kept; then the states are
//! parted by slot and kept for the new partitions; then it is noted that these hold. Cut anywhere before that note, it
//! begins anew from the old ones. Only a process that is alone can know that nobody appends.

use std::time::{Duration, Instant};

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::chain;

use super::{Rules, StartError};
use crate::{
    checkpoints::{Chain, CheckpointError, CheckpointStore},
    consumer::{Backoff, Stop},
    engine::State,
};

/// How long a start waits for a store that does not answer: nobody may append before it is known whether something has
/// to move.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Makes the checkpoints fit `partitions`. `reader` makes what reads one partition of so many.
pub(super) fn take_up(
    checkpoints: &CheckpointStore,
    partitions: u16,
    reader: impl Fn(u16, u16) -> Rules + Sync,
) -> Result<(), StartError> {
    let work = || -> Result<(), StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| StartError::Thread { what: "checkpoints".into(), source })?;
        runtime.block_on(async {
            match found(checkpoints).await? {
                Some(found) if found == partitions => {}
                None => checkpoints.set_layout(partitions).await?,
                Some(from) if checkpoints.is_shared() => {
                    let reason =
                        "others may be at work: stop all processes, and start one with all roles, once";
                    return Err(StartError::Move { from, to: partitions, reason: reason.into() });
                }
                Some(from) => {
                    move_slots(checkpoints, from, partitions, &reader).await?;
                    checkpoints.set_layout(partitions).await?;
                    checkpoints.forget_layout(from).await?;
                    tracing::info!(
                        from,
                        to = partitions,
                        "what the rules know has moved to other partitions"
                    );
                }
            }
            Ok(())
        })
    };
    // On a thread of its own: the caller may be on a runtime.
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| {
        let words = dunlin_model::panic_words(&*panic);
        let source = std::io::Error::other(format!("panicked: {words}"));
        Err(StartError::Thread { what: "checkpoints".into(), source })
    })
}

async fn found(checkpoints: &CheckpointStore) -> Result<Option<u16>, CheckpointError> {
    let (began, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        match checkpoints.layout().await {
            Err(error) if !error.is_final() && began.elapsed() < WAIT_MAX => {
                let pause = backoff.next();
                tracing::error!(
                    error = chain(&error),
                    ?pause,
                    "checkpoints cannot be read; waiting for them"
                );
                tokio::time::sleep(pause).await;
            }
            answer => return answer,
        }
    }
}

async fn move_slots(
    checkpoints: &CheckpointStore,
    from: u16,
    to: u16,
    reader: &impl Fn(u16, u16) -> Rules,
) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Move { from, to, reason };
    let (_never, mut stop) = Stop::never();
    let (mut states, mut positions) = (Vec::<State>::new(), Vec::new());
    for index in 0..from {
        let reader = reader(index, from);
        let journal = reader.journal.clone();
        if index >= journal.partitions(Topic::Telemetry) {
            return Err(failed(format!("the journal has no partition {index} any more")));
        }
        let (position, state) = reader.catch_up(&mut stop).await.map_err(failed)?;
        positions.push(position);
        states.push(state);
    }
    let oldest = |index: u16| {
        let at = Partition::new(Topic::Telemetry, index);
        reader(index, to).journal.extent(at).oldest
    };
    for (index, state) in (0..to).zip(State::moved(states, to)) {
        let position: Offset = positions.get(usize::from(index)).copied().unwrap_or_else(|| oldest(index));
        let chain_of = Chain::of(checkpoints, to, index);
        let (_, mut writer) = chain_of.load::<State>().await?;
        writer.begin(position, true, &state);
        if let Some(Err(error)) = writer.finished().await {
            return Err(failed(chain(&error)));
        }
    }
    Ok(())
}
