import org.apache.flink.api.common.JobExecutionResult;
import org.apache.flink.api.common.eventtime.SerializableTimestampAssigner;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;

import java.time.Duration;
import java.util.concurrent.TimeUnit;

/**
 * Average, maximum and count of 1 s tumbling windows in event time, at parallelism 1: the data, the keys and the
 * lateness of the example windows_bench. Prints events per second.
 */
public class Windows {
    public static class Event {
        public String key;
        public long millis;
        public double value;
    }

    public static class Sums {
        public double sum;
        public double max = Double.NEGATIVE_INFINITY;
        public long count;
    }

    static class Aggregate implements AggregateFunction<Event, Sums, Tuple3<Double, Double, Long>> {
        @Override
        public Sums createAccumulator() {
            return new Sums();
        }

        @Override
        public Sums add(Event event, Sums sums) {
            sums.sum += event.value;
            sums.max = Math.max(sums.max, event.value);
            sums.count += 1;
            return sums;
        }

        @Override
        public Tuple3<Double, Double, Long> getResult(Sums sums) {
            return Tuple3.of(sums.sum / sums.count, sums.max, sums.count);
        }

        @Override
        public Sums merge(Sums a, Sums b) {
            a.sum += b.sum;
            a.max = Math.max(a.max, b.max);
            a.count += b.count;
            return a;
        }
    }

    /** The n-th event, made where it is needed: what reading it from somewhere costs is not measured. */
    static class Make implements MapFunction<Long, Event> {
        private final int keys;
        private transient String[] names;

        Make(int keys) {
            this.keys = keys;
        }

        @Override
        public Event map(Long number) {
            if (names == null) {
                names = new String[keys];
                for (int n = 0; n < keys; n++) {
                    names[n] = String.format("key-%06d", n);
                }
            }
            long n = number;
            Event event = new Event();
            event.key = names[(int) (n % keys)];
            event.millis = 1_700_000_000_000L + n * 100 / keys;
            event.value = Long.remainderUnsigned(n * 0x9E3779B9L, 1_000);
            return event;
        }
    }

    public static void main(String[] arguments) throws Exception {
        long events = Long.parseLong(arguments[0]);
        int keys = Integer.parseInt(arguments[1]);
        // The first run warms the compiler up.
        run(events / 5, keys);
        double seconds = run(events, keys);
        System.out.printf("%.0f events/s%n", events / seconds);
    }

    private static double run(long events, int keys) throws Exception {
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
        env.setParallelism(1);
        env.getConfig().enableObjectReuse();
        WatermarkStrategy<Event> watermarks = WatermarkStrategy.<Event>forBoundedOutOfOrderness(Duration.ofSeconds(1))
            .withTimestampAssigner((SerializableTimestampAssigner<Event>) (event, before) -> event.millis);
        env.fromSequence(0, events - 1)
            .map(new Make(keys))
            .assignTimestampsAndWatermarks(watermarks)
            .keyBy((KeySelector<Event, String>) event -> event.key)
            .window(TumblingEventTimeWindows.of(Duration.ofSeconds(1)))
            .aggregate(new Aggregate())
            .sinkTo(new DiscardingSink<>());
        JobExecutionResult result = env.execute("windows");
        return result.getNetRuntime(TimeUnit.MILLISECONDS) / 1e3;
    }
}
