"""An application of one's own: it tells its orders to whom Entra gave a token for it. Started by own_application.rs.

Arguments: the URL of Entra's keys, the issuer and the audience that a token must name. It prints its own URL.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt

keys_url, issuer, audience = sys.argv[1:]
keys = jwt.PyJWKClient(keys_url)


class Orders(BaseHTTPRequestHandler):
    def do_GET(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        try:
            if scheme != "Bearer":
                raise jwt.InvalidTokenError("no bearer token")
            key = keys.get_signing_key_from_jwt(token)
            required = {"require": ["exp", "nbf", "iss", "aud"]}
            claims = jwt.decode(token, key, ["RS256"], audience=audience, issuer=issuer, options=required)
            self.answer(200, {"orders": [17], "caller": claims["appid"]})
        except jwt.PyJWTError as error:
            self.answer(401, {"error": type(error).__name__})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Orders)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
