import java.nio.file.Files;
import java.nio.file.Path;
import javax.security.sasl.AuthenticationException;
import org.apache.hive.service.auth.PasswdAuthenticationProvider;

/** Lets a user into HiveServer2 who knows the password in the file USER.password of one folder. */
public class FilePasswords implements PasswdAuthenticationProvider {
    private static final Path FOLDER = Path.of(System.getProperty("vista.passwords"));

    @Override
    public void Authenticate(String user, String password) throws AuthenticationException {
        try {
            if (user.matches("\\w+") && Files.readString(FOLDER.resolve(user + ".password")).equals(password)) return;
        } catch (java.io.IOException unknownUser) {
            // refused below
        }
        throw new AuthenticationException("wrong user or password");
    }
}
