use arrow::array::{Float64Array, Int64Array, StringViewArray, TimestampMicrosecondArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

use super::*;
use crate::columns::{Column, Kind, schema_of};

fn floats(values: Vec<f64>) -> ArrayRef {
    Arc::new(Float64Array::from(values))
}

#[test]
fn decimals_are_found_where_every_bit_comes_back() {
    let shape = |values: &[f64]| decimals(&[&floats(values.to_vec())]);
    assert_eq!(shape(&[21.5, 19.0, -3.25]), Some(Shape::Decimal { scale: 2, precision: 9 }));
    assert_eq!(shape(&[0.1, 0.2, 0.3, 1_013.7]), Some(Shape::Decimal { scale: 1, precision: 9 }));
    assert_eq!(shape(&[12_345_678_901.5]), Some(Shape::Decimal { scale: 1, precision: 18 }));
    for stubborn in [0.1 + 0.2, 1.0 / 3.0, -0.0, 1e300, f64::NAN, f64::INFINITY, 1e-7] {
        assert_eq!(shape(&[1.5, stubborn]), None, "{stubborn}");
    }
}

#[test]
fn a_packed_file_gives_every_bit_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let column = |name: &str, kind| Column { name: name.into(), metric: name.into(), kind, wide: false };
    let schema =
        schema_of(&[column("a.b", Kind::F64), column("noise", Kind::F64), column("n", Kind::I64)], false);
    let rows = 3_000_i64;
    let times: Vec<i64> = (0..rows).map(|n| n * 10_000_000).collect();
    let time = TimestampMicrosecondArray::from(times).with_timezone("UTC");
    let batch = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(StringViewArray::from_iter_values((0..rows).map(|n| format!("device-{:04}", n / 100)))),
            Arc::new(time.clone()),
            Arc::new(time),
            floats((0..rows).map(|n| (n % 400) as f64 / 10.0).collect()),
            floats((0..rows).map(|n| (n as f64).sin()).collect()),
            Arc::new(Int64Array::from_iter((0..rows).map(|n| (n % 3 != 0).then_some(n)))),
        ],
    )
    .expect("a batch");
    let label = Label {
        id: 1,
        table_dir: "t/d".into(),
        partition: Partition::day_of(Timestamp::from_micros(0)),
        run: 1,
        level: 0,
        written_at: Timestamp::from_micros(0),
    };
    let plan = Plan::small(&schema, std::slice::from_ref(&batch)).expect("a plan");
    let entry = write_file(dir.path(), label, &plan, [Ok(batch.clone())]).expect("write");
    assert_eq!(
        (entry.rows, entry.device_min.as_str(), entry.device_max.as_str()),
        (3_000, "device-0000", "device-0029")
    );
    let file = fs::File::open(dir.path().join(&entry.path)).expect("the file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet").with_batch_size(4_096);
    let stored: Vec<RecordBatch> =
        reader.build().expect("parquet").map(|batch| batch.expect("a batch")).collect();
    assert_eq!(stored[0].schema().field(3).data_type(), &DataType::Decimal64(9, 1));
    assert_eq!(conform(&stored[0], &schema).expect("the same columns"), batch);
}

#[test]
fn a_file_that_is_not_finished_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let label = Label {
        id: 1,
        table_dir: "t/d".into(),
        partition: Partition::day_of(Timestamp::from_micros(0)),
        run: 1,
        level: 0,
        written_at: Timestamp::from_micros(0),
    };
    let schema = schema_of(&[], false);
    let broken = StoreError::Engine { reason: "broken".into() };
    let rows = [Ok(RecordBatch::new_empty(schema.clone())), Err(broken)];
    write_file(dir.path(), label, &Plan::fast(schema), rows).expect_err("half a file");
    let day = dir.path().join("t/d/1970-01-01");
    assert_eq!(fs::read_dir(day).expect("the directory was made").count(), 0);
}

proptest! {
    #[test]
    fn what_is_stored_as_a_decimal_comes_back(thousandths in proptest::collection::vec(-10_i64.pow(15)..10_i64.pow(15), 1..50)) {
        let values = floats(thousandths.iter().map(|n| *n as f64 / 1_000.0).collect());
        if let Some(shape) = decimals(&[&values]) {
            let back = cast(&shape.apply(&values).expect("decimals"), &DataType::Float64).expect("floats");
            prop_assert_eq!(&back, &values);
        }
    }
}
