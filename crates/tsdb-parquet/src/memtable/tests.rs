use super::*;

/// Rows of one reading each, of one column after the other; the bytes that were counted.
fn sparse(memtable: &mut Memtable, rows: usize, columns: u16) -> usize {
    let mut bytes = 0;
    for row in 0..rows {
        bytes += memtable.set(row as u16 % columns, Kind::F64, ValueRef::F64(row as f64));
        let time = Timestamp::from_micros(row as i64);
        bytes += memtable.push(RowKey { device: 0, time, received_at: None, print: row as u64 });
    }
    bytes
}

fn allocated(chunks: &[Arc<Chunk>]) -> usize {
    let arrays = chunks.iter().flat_map(|chunk| chunk.columns.iter().flatten());
    arrays.map(|array| array.get_array_memory_size()).sum()
}

#[test]
fn sparse_rows_take_little_and_all_of_it_is_counted() {
    let mut memtable = Memtable::default();
    let counted = sparse(&mut memtable, 20_000, 512);
    let (chunks, _) = memtable.take();
    let allocated = allocated(&chunks);
    assert!(allocated <= counted, "{allocated} bytes are allocated, {counted} counted");
    // Padded to full chunks it would be 4 KiB a row.
    assert!(counted < 20_000 * 2_048, "{counted}");
    let values: usize = chunks
        .iter()
        .flat_map(|chunk| chunk.columns.iter().flatten())
        .map(|array| array.len() - array.null_count())
        .sum();
    assert_eq!(values, 20_000);
}

#[test]
fn full_rows_make_full_chunks() {
    let mut memtable = Memtable::default();
    let counted = sparse(&mut memtable, CHUNK_ROWS * 2, 1);
    let (chunks, _) = memtable.take();
    assert_eq!(chunks.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [CHUNK_ROWS; 2]);
    assert!(allocated(&chunks) <= counted);
}
