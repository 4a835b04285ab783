"""URLs, host names and redirect targets in private networks, each with the expected error code."""

PUBLIC = "93.184.216.34"
PUBLIC_IPV6 = "2606:2800:220:1::1"
# The results of lookups of each name, in order. The last result is repeated.
NAMES: dict[str, list[list[str]]] = {
    "public.test": [[PUBLIC]],
    "public6.test": [[PUBLIC_IPV6, PUBLIC]],
    "loopback.test": [["127.0.0.1", "::1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "private.test": [["10.0.0.5"]],
    "mixed.test": [[PUBLIC, "127.0.0.1"]],
    "mixed6.test": [[PUBLIC, "::1"]],
    "mixedlast.test": [[PUBLIC_IPV6, PUBLIC, "169.254.169.254"]],
    "nat64.test": [["64:ff9b::a9fe:a9fe"]],
    "zone.test": [["fe80::1%1"]],
    "rebind.test": [["127.0.0.1"], [PUBLIC]],
    "rebound.test": [[PUBLIC], ["127.0.0.1"]],
    "server.test": [["127.0.0.1"]],
}

LOOPBACK_URLS = """
http://127.0.0.1/ http://127.0.0.1:8080/ http://127.1/ http://127.0.1/ http://0/ http://0.0.0.0/ http://2130706433/
http://0x7f000001/ http://0x7f.0.0.1/ http://0x7f.1/ http://017700000001/ http://127.255.255.254/
http://localhost/ http://LOCALHOST/ http://localhost./ https://localhost/ http://[::1]/ http://[0:0:0:0:0:0:0:1]/
http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::127.0.0.1]/ http://127。0。0。1/
"""
METADATA_URLS = """
http://169.254.169.254/latest/meta-data/ http://2852039166/ http://0xa9fea9fe/ http://[::ffff:a9fe:a9fe]:8080/
http://192.0.0.192/ http://168.63.129.16/ http://100.100.100.200/ http://metadata.google.internal/
http://[fd00:ec2::254]/ http://[fd20:ce::254]/ http://[::ffff:169.254.169.254]/ http://[::ffff:a9fe:a9fe]/
"""
PRIVATE_URLS = """
http://10.0.0.1/ http://172.16.0.1/ http://172.31.255.255/ http://192.168.0.1/ http://100.64.0.1/ http://169.254.0.1/
http://192.88.99.1/ http://198.18.0.1/ http://192.0.2.1/ http://198.51.100.1/ http://203.0.113.1/ http://224.0.0.1/
http://239.255.255.250/ http://240.0.0.1/ http://255.255.255.255/ http://[fe80::1]/ http://[fc00::1]/
http://[fec0::1]/ http://[ff02::1]/ http://[2002:7f00:1::1]/ http://[2002:a9fe:a9fe::1]/ http://[64:ff9b::7f00:1]/
http://[64:ff9b::127.0.0.1]/ http://[64:ff9b:1::7f00:1]/ http://[2001:db8::1]/ http://[2001::1]/ http://[100::1]/
http://[3fff::1]/ http://[5f00::1]/
"""
NAMED_URLS = """
http://private.test/ http://mixed.test/ http://mixed6.test/ http://mixedlast.test/ http://nat64.test/
http://zone.test/ http://rebind.test/
"""
JUNK_URLS = {
    "": "invalid_url",
    "http://": "invalid_url",
    "http:///x": "invalid_url",
    "http://[": "invalid_url",
    "http://[::1": "invalid_url",
    "http://[fe80::1%25eth0]/": "invalid_url",
    "http://a b/": "invalid_url",
    "//127.0.0.1/": "invalid_url",
    "127.0.0.1": "invalid_url",
    "file:///etc/passwd": "invalid_url",
    "gopher://127.0.0.1:6379/_INFO": "invalid_url",
    "ftp://127.0.0.1/": "invalid_url",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/": "invalid_url",
    "javascript:alert(1)": "invalid_url",
    "http://public.test@127.0.0.1/": "invalid_url",
    "http://127.0.0.1@public.test/": "invalid_url",
    "http://public.test\\@127.0.0.1/": "invalid_url",
    "http://127.0.0.1#@public.test/": "address_refused",
    "http://127.0.0.1:80\r\nX: y/": "invalid_url",
    "http://public.test:65536/": "invalid_url",
    "http://public.test:99999999999999999999/": "invalid_url",
    "http://public.test:-1/": "invalid_url",
    f"http://{'a' * 300}.test/": "invalid_url",
    f"http://public.test/{'a' * 70_000}": "invalid_url",
    "http://\ud800/": "invalid_url",
    "http://public.test/\ud800": "invalid_url",
    "http://xn--a/": "invalid_url",
    "http://public\0.test/": "invalid_url",
    "http://nobody.test/": "name_not_resolved",
    "http://0177.0.0.1/": "invalid_url",
    "http://0251.0376.0251.0376/": "invalid_url",
    "http://①②⑦.⓪.⓪.①/": "invalid_url",
    "http://%31%32%37.0.0.1/": "invalid_url",
    "http://127.0.0.1.nobody.test/": "name_not_resolved",
    "http://public.test:22/": "port_refused",
    "https://public.test:6379/": "port_refused",
    "http://public.test:0/": "invalid_url",
}
HOSTILE_URLS = [
    *((url, "address_refused") for url in (LOOPBACK_URLS + METADATA_URLS + PRIVATE_URLS + NAMED_URLS).split()),
    *JUNK_URLS.items(),
]
HOSTILE_LOCATIONS = {
    "http://127.0.0.2/": "address_refused",
    "http://loopback.test:22/": "address_refused",
    "http://[::1]/": "address_refused",
    "//169.254.169.254/latest/": "address_refused",
    "http://2130706434/": "address_refused",
    "http://mixed6.test/": "address_refused",
    "http://private.test/": "address_refused",
    "https://10.0.0.1/": "address_refused",
    "http://public.test:25/": "port_refused",
    "file:///etc/passwd": "invalid_url",
    "gopher://127.0.0.1/": "invalid_url",
    "http://[": "invalid_url",
    "http://a@127.0.0.1/": "invalid_url",
    "javascript:alert(1)": "invalid_url",
}
