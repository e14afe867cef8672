use crate::lab::ParquetLab;

dunlin_tsdb::conformance::tests!(ParquetLab::default());
