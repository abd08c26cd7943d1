// LIBRARY METHOD URL: prints the status that the library was answered.
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Client {
    public static void main(String[] words) throws Exception {
        var url = URI.create(words[2]);
        var token = System.getenv("API_TOKEN");
        var authorization = token == null ? "none" : "Bearer " + token;
        if (words[0].equals("HttpURLConnection")) {
            var connection = (HttpURLConnection) url.toURL().openConnection();
            connection.setRequestMethod(words[1]);
            connection.setRequestProperty("Authorization", authorization);
            System.out.println(connection.getResponseCode());
            return;
        }
        var body = HttpRequest.BodyPublishers.noBody();
        var request = HttpRequest.newBuilder(url).method(words[1], body);
        request.header("Authorization", authorization);
        var answer = HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode());
    }
}
