package redteam

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// spellings is a corpus of ways to write "one level up and then into target", each of which some server, proxy or policy
// engine took for another path than its neighbour did.
func spellings(target string) []string {
	ups := []string{
		"..", "%2e%2e", "%2E%2E", ".%2e", "%2e.", "%252e%252e", "%25252e%25252e", "..%00", "..%20", "...", "....", "..;", "..;x=y", "%2e%2e;", "..%3b", ".;.", "..%0a", "..%0d", "..%09", "..#", "..%23",
		"..%3f", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%uff0e%uff0e", "%ef%bc%8e%ef%bc%8e", "%u002e%u002e", ".%00.", "..%c0%80", "%%32%65%%32%65", "%2%65%2%65", "..%5c..", "~", ".", "%2e",
	}
	slashes := []string{"/", "//", "%2f", "%2F", "%252f", "%5c", "%5C", "\\", "%255c", "/./", "/%2e/", ";/", "/;/", "%c0%af", "%e2%88%95", "%ef%bc%8f", "%u2215", "/%00/"}
	var out []string
	for _, up := range ups {
		for _, slash := range slashes {
			out = append(out, up+slash+target, "x"+slash+up+slash+up+slash+target)
		}
	}
	for _, absolute := range []string{"/", "//", "%2f", "%2f%2f", "file:///", "file:%2f%2f%2f", "C:%5c", "\\\\", "%5c%5c", "http://127.0.0.1/", "https:%2f%2f127.0.0.1%2f", "?", "%3f", "#", "%23"} {
		out = append(out, absolute+target, absolute+"etc/passwd", absolute+"proc/self/environ", absolute+"root/.ssh/id_rsa")
	}
	return out
}

// pathTraversal: MLflow's artifact paths, model sources and run ids were traversed a dozen times over (CVE-2023-1177,
// 2356, 6831, 6909; CVE-2024-1560, 1593; CVE-2025-11201; mlflow#7166). The student may read the container "open" and
// nothing else: no spelling may lead to the container "closed", to another plane's object or to a file.
func pathTraversal(t *testing.T, w *world) {
	storage, err := w.student.Token(t.Context(), "https://storage.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	arm, err := w.contributor.Token(t.Context(), "https://management.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	vault, err := w.nobody.Token(t.Context(), w.URL("vault", ""))
	if err != nil {
		t.Fatal(err)
	}
	raw := w.NewRaw()
	defer raw.Close()
	n := 0
	try := func(what, method, host, target, token string) {
		n++
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nX-Ms-Version: %s\r\nContent-Length: 0\r\n\r\n", method, target, host, token, harness.VersionBlob)
		a, err := raw.Do(t.Context(), method, text)
		if err != nil {
			t.Errorf("%s %s: %v", what, target, err)
			return
		}
		if a.Status >= 500 && a.Status != 501 {
			t.Errorf("%s %s = %v", what, target, a)
		}
		if a.Status < 400 && !strings.Contains(what, "may") {
			t.Errorf("%s %s = %v", what, target, a)
		}
		silent(t, what+" "+target, a)
		if strings.Contains(string(a.Body), "root:") || strings.Contains(string(a.Body), "PATH=") {
			t.Errorf("%s %s read a file of the machine", what, target)
		}
	}
	for _, s := range spellings("closed/secret.csv") {
		try("blob", http.MethodGet, w.Host(w.blobHost), "/open/"+s, storage)
		try("list, which may find nothing", http.MethodGet, w.Host(w.blobHost), "/open?restype=container&comp=list&prefix="+strings.NewReplacer("#", "%23", "?", "%3f", "\\", "%5c").Replace(s), storage)
	}
	for _, s := range spellings("secrets/canary") {
		try("secret", http.MethodGet, w.Host(w.vaultHost), "/keys/"+s+"?api-version=7.4", vault)
	}
	other := strings.TrimPrefix(w.NewGroup(t), w.Subscription()+"/resourceGroups/")
	for _, s := range spellings(other) {
		try("group", http.MethodGet, w.Host("management"), w.group+"/"+s+"?api-version=2021-04-01", arm)
		try("delete", http.MethodDelete, w.Host("management"), w.group+"/"+s+"?api-version=2021-04-01", arm)
	}
	w.MustARM(t, http.MethodGet, w.Subscription()+"/resourceGroups/"+other, harness.VersionGroup, nil)
	if n < 500 {
		t.Errorf("%d spellings, want 500 and more", n)
	}
	t.Logf("%d requests", n)
	namesStayNames(t, w)
}

// namesStayNames stores blobs whose names look like traversals and gets exactly them back.
func namesStayNames(t *testing.T, w *world) {
	var stored []string
	for i, name := range []string{"../closed/secret.csv", "..%2fclosed", "a/./b", "a//b", "/leading", "trailing/", "%2e%2e/x", "\\..\\x", "a;b=c", "?x", "#y", "é", " "} {
		content := fmt.Sprint("mine ", i)
		path := "/open/" + pathEscape(name)
		a, err := w.PutBlob(t.Context(), w.student, w.blobHost, path, []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		if a.Status == 400 {
			continue // refusing a name is safe, too
		}
		if a.Status != 201 {
			t.Errorf("storing %q = %v", name, a)
			continue
		}
		stored = append(stored, name)
		if got := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, path), As: w.student}); string(got.Body) != content {
			t.Errorf("reading %q = %v", name, got)
		}
	}
	if len(stored) < 8 {
		t.Errorf("only %q could be stored", stored)
	}
	a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, "/closed/secret.csv"), As: w.Admin})
	if string(a.Body) != canary {
		t.Errorf("the neighbour's object is now %v", a)
	}
}

func pathEscape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// pathNormalisation: proxy, policy and handler each saw another path (CVE-2026-26205, CVE-2025-46569, CVE-2026-40575,
// 48020). Who is Contributor of one group must not reach another by any spelling of its path; and what the owner reaches
// by a spelling must be what the spelling says.
func pathNormalisation(t *testing.T, w *world) {
	other := w.NewGroup(t)
	otherVault, _ := w.NewVault(t, other, nil)
	token, err := w.contributor.Token(t.Context(), "https://management.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	raw := w.NewRaw()
	defer raw.Close()
	name := other[strings.LastIndexByte(other, '/')+1:]
	paths := []string{
		other, "/" + other, strings.ReplaceAll(other, "/", "//"), strings.ToUpper(other), strings.ToLower(other), other + "/", other + "//", "/." + other, "/%2e" + other, other + "/.", other + "/..",
		strings.Replace(other, "/resourceGroups/", "/resourceGroups%2f", 1), strings.Replace(other, "resourceGroups", "resource%47roups", 1), strings.Replace(other, "resourceGroups", "resource%2547roups", 1),
		w.group + "/../" + name, w.group + "/..%2f" + name, w.group + "%2f..%2f" + name, w.group + "/..;/" + name, w.group + ";/../" + name, w.group + "/%2e%2e/" + name, w.group + "\\..\\" + name,
		w.group + "%00/../" + name, other + "#" + w.group, other + "%23", other + "?" + w.group, other + "%3f", other + ";" + w.group, other + "%20", "https://" + w.Host("management") + other,
		otherVault, strings.ToUpper(otherVault), w.group + "/providers/Microsoft.KeyVault/vaults/x/../../../../../resourceGroups/" + name, w.group + otherVault, w.group + "/providers" + otherVault,
		w.group + "/providers/Microsoft.Authorization/roleAssignments/../../../../" + name, other + "/providers/Microsoft.Authorization/roleAssignments",
	}
	for _, path := range paths {
		for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodHead} {
			query := "?api-version=2021-04-01"
			if strings.Contains(path, "?") || strings.Contains(path, "#") {
				query = strings.ReplaceAll(query, "?", "&")
			}
			text := fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", method, path, query, w.Host("management"), token)
			a, err := raw.Do(t.Context(), method, text)
			if err != nil {
				t.Errorf("%s %s: %v", method, path, err)
			} else if a.Status < 400 || a.Status >= 500 {
				t.Errorf("%s %s = %v", method, path, a)
			}
		}
	}
	w.MustARM(t, http.MethodGet, otherVault, harness.VersionVault, nil)
	rewrittenURLs(t, w, other, token)

	// The canonical group by its owner's odd but harmless spellings.
	for _, path := range []string{strings.ReplaceAll(other, "/", "//"), other + "/", strings.ToUpper(other), strings.Replace(other, "resourceGroups", "resource%47roups", 1)} {
		a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL("management", path+"?api-version=2021-04-01"), As: w.Admin})
		if a.Status != 200 || !strings.EqualFold(a.Field("name"), name) {
			t.Errorf("owner: GET %s = %v", path, a)
		}
	}
}

// rewrittenURLs offers another path in headers that proxies understand.
func rewrittenURLs(t *testing.T, w *world, other, token string) {
	for _, header := range []string{"X-Forwarded-Uri", "X-Original-Url", "X-Original-Uri", "X-Rewrite-Url", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Envoy-Original-Path", "X-Http-Destinationurl"} {
		for _, pair := range [][2]string{{w.group, other}, {other, w.group}} {
			a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL("management", pair[0]+"?api-version=2021-04-01"), Token: token, Header: http.Header{header: {pair[1] + "?api-version=2021-04-01"}}})
			want := map[bool]int{true: 200, false: 403}[pair[0] == w.group]
			if a.Status != want || want == 200 && !strings.EqualFold(a.Field("id"), w.group) {
				t.Errorf("%s: GET %s = %v, want %d", header, pair[0], a, want)
			}
		}
	}
}

// hostHeader: a web page bound its own name to the loopback address and spoke to MLflow (CVE-2025-14279). Only the
// platform's own names are answered.
func hostHeader(t *testing.T, w *world) {
	raw := w.NewRaw()
	defer raw.Close()
	token, err := w.Admin.Token(t.Context(), "https://management.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{
		"evil.example", "evil.example:" + w.Port, "localhost", "localhost:" + w.Port, "0.0.0.0", "127.0.0.1.nip.io", "127.1", "2130706433", "0x7f.0.0.1", "management", w.Domain,
		"management." + w.Domain + ".evil.example", "evil.example#management." + w.Domain, "management." + w.Domain + "@evil.example", "x.management." + w.Domain, "management.x." + w.Domain,
		"management" + w.Domain, ".management." + w.Domain, "management.." + w.Domain, "management." + w.Domain + ":evil", "evil.vault." + w.Domain, "a.b.vault." + w.Domain, "vault." + w.Domain, "core." + w.Domain,
		".blob.core." + w.Domain, "management." + w.Domain + ",evil.example", "", " ", "management.azure.com", "login.microsoftonline.com", "169.254.169.254", "metadata.google.internal",
	}
	path := w.group + "?api-version=2021-04-01"
	for _, host := range hosts {
		for _, target := range []string{path, "/metadata/endpoints?api-version=2019-05-01"} {
			a, err := raw.Do(t.Context(), "GET", fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", target, host, token))
			if err != nil {
				continue // closed without a word
			}
			if !slices.Contains([]int{400, 401, 404, 421}, a.Status) || strings.Contains(string(a.Body), "loginEndpoint") {
				t.Errorf("Host %q: GET %s = %v", host, target, a)
			}
		}
	}
	good := w.Host("management")
	for what, text := range map[string]string{
		"two hosts":       "GET " + path + " HTTP/1.1\r\nHost: " + good + "\r\nHost: evil.example\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"no host":         "GET " + path + " HTTP/1.1\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"absolute target": "GET https://evil.example" + path + " HTTP/1.1\r\nHost: " + good + "\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"forwarded host":  "GET " + path + " HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: " + good + "\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"space in name":   "GET " + path + " HTTP/1.1\r\nHost : " + good + "\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"smuggled":        "POST " + path + " HTTP/1.1\r\nHost: " + good + "\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET " + path + " HTTP/1.1\r\nHost: " + good + "\r\n\r\n",
		"length twice":    "POST " + path + " HTTP/1.1\r\nHost: " + good + "\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"folded header":   "GET " + path + " HTTP/1.1\r\nHost: evil.example\r\n " + good + "\r\n\r\n",
	} {
		raw.Close()
		a, err := raw.Do(t.Context(), "GET", text)
		if err == nil && a.Status < 400 {
			t.Errorf("%s = %v", what, a)
		}
	}
	for _, origin := range []string{"https://evil.example", "null", "http://management." + w.Domain} {
		a := w.send(t, harness.Call{Method: http.MethodOptions, URL: w.URL("management", path), Header: http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"authorization"}}})
		if a.Status < 400 || a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("a page of %s is let in: %v %v", origin, a, a.Header)
		}
	}
}
