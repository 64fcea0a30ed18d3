"""A site under attack."""

import base64
import http.client
import json
import urllib.parse

from support.zope_site import ZopeSite


class Site(ZopeSite):
    """Asks as any of its users, and follows no redirects."""

    def ask(self, method, path, body=None, user=None, **headers):
        """Status, header fields and text of a reply."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if user:
            password = self.password if user == "admin" else "mailer-password"
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            try:
                text = response.read()
            except http.client.IncompleteRead as error:  # what answers a HEAD may be asked for by GET
                text = error.partial
            return response.status, response.headers, text.decode("utf-8", "replace")
        finally:
            connection.close()

    def type_into(self, page, user=None, **fields):
        """What a browser posts; a list is typed into several fields of that name."""
        body = urllib.parse.urlencode(fields, doseq=True, errors="surrogatepass")
        return self.ask("POST", f"/{page}", body, user, Content_Type="application/x-www-form-urlencoded")

    def state(self):
        return json.loads(self.ask("GET", "/attacked/state")[2])
