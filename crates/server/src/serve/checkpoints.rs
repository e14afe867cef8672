//! Where the rules keep what they know.

use std::path::Path;

use dunlin_pipeline::{CheckpointError, CheckpointStore};

/// The store at `place`: a URL with a scheme, or a directory; `pipeline` below the data directory if it is empty.
pub(crate) fn open(
    place: &str,
    data: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<CheckpointStore, CheckpointError> {
    match place {
        "" => CheckpointStore::local(&data.join("pipeline")),
        url if url.contains("://") => {
            let for_s3 = environment.into_iter().filter(|(name, _)| name.starts_with("AWS_"));
            CheckpointStore::at(url, for_s3.map(|(name, value)| (name.to_lowercase(), value)))
        }
        dir => CheckpointStore::local(Path::new(dir)),
    }
}
