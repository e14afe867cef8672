import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.types.Row;
import org.apache.flink.util.CloseableIterator;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * What Flink SQL says of the expressions of alike.tsv, in the file's own form: T, F, N (NULL), and E where it ends the
 * query.
 */
public class Expressions {
    private static final String[] TYPES = {"DOUBLE", "DOUBLE", "BIGINT", "BIGINT", "BOOLEAN", "BOOLEAN", "STRING", "STRING"};
    /** What it costs to plan a query grows faster than the query. */
    private static final int TOGETHER = 12;

    public static void main(String[] arguments) throws Exception {
        TableEnvironment environment = TableEnvironment.create(EnvironmentSettings.inBatchMode());
        environment.getConfig().set("parallelism.default", "1");
        List<String> rows = new ArrayList<>();
        List<String> expressions = new ArrayList<>();
        for (String line : Files.readAllLines(Path.of(arguments[0]), StandardCharsets.UTF_8)) {
            if (line.startsWith("> ")) {
                rows.add(values(rows.size(), line.substring(2).split("\t", -1)));
            } else if (!line.isEmpty() && !line.startsWith("#")) {
                expressions.add(line.split("\t")[0]);
            }
        }
        environment.executeSql(
            "CREATE TEMPORARY VIEW readings AS SELECT * FROM (VALUES " + String.join(", ", rows)
                + ") AS r(n, x, y, i, j, b, c, s, t)");
        List<char[]> verdicts = new ArrayList<>();
        for (int from = 0; from < expressions.size(); from += TOGETHER) {
            int to = Math.min(from + TOGETHER, expressions.size());
            judge(environment, expressions.subList(from, to), rows.size(), verdicts);
        }
        for (int n = 0; n < expressions.size(); n++) {
            System.out.println(expressions.get(n) + "\t" + new String(verdicts.get(n)));
        }
    }

    private static String values(int number, String[] fields) {
        StringBuilder row = new StringBuilder("(" + number);
        for (int n = 0; n < fields.length; n++) {
            boolean isText = TYPES[n].equals("STRING") && !fields[n].equals("NULL");
            String value = isText ? "'" + fields[n].replace("'", "''") + "'" : fields[n];
            row.append(", CAST(").append(value).append(" AS ").append(TYPES[n]).append(')');
        }
        return row.append(')').toString();
    }

    /** Together as long as none ends the query; then each; then by row. */
    private static void judge(TableEnvironment environment, List<String> expressions, int rows, List<char[]> verdicts) {
        try {
            verdicts.addAll(ask(environment, expressions, rows, ""));
            return;
        } catch (Exception ended) {
            if (expressions.size() > 1) {
                for (String expression : expressions) {
                    judge(environment, List.of(expression), rows, verdicts);
                }
                return;
            }
        }
        char[] verdict = new char[rows];
        for (int row = 0; row < rows; row++) {
            try {
                verdict[row] = ask(environment, expressions, rows, " WHERE n = " + row).get(0)[row];
            } catch (Exception ended) {
                verdict[row] = 'E';
                Throwable cause = ended;
                while (cause.getCause() != null) {
                    cause = cause.getCause();
                }
                System.err.println(expressions.get(0) + ": " + cause);
            }
        }
        verdicts.add(verdict);
    }

    private static List<char[]> ask(TableEnvironment environment, List<String> expressions, int rows, String where)
            throws Exception {
        StringBuilder query = new StringBuilder("SELECT n");
        List<char[]> verdicts = new ArrayList<>();
        for (String expression : expressions) {
            query.append(", (").append(expression).append(')');
            verdicts.add(new char[rows]);
        }
        try (CloseableIterator<Row> found = environment.executeSql(query + " FROM readings" + where).collect()) {
            while (found.hasNext()) {
                Row row = found.next();
                int number = (Integer) row.getField(0);
                for (int n = 0; n < verdicts.size(); n++) {
                    Boolean holds = (Boolean) row.getField(n + 1);
                    verdicts.get(n)[number] = holds == null ? 'N' : holds ? 'T' : 'F';
                }
            }
        }
        return verdicts;
    }
}
