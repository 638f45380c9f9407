package identity

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
)

// body is a request's JSON object. What a handler understands it takes out; what is left is refused, so that nobody
// believes in a property which the directory has dropped.
type body map[string]any

func readBody(r *resource.Request) (body, error) {
	raw, err := r.ReadBody()
	if err != nil {
		return nil, err
	}
	m, err := resource.DecodeBody(raw)
	return body(m), err
}

func (b body) str(name string) (string, bool, error) {
	v, ok := b[name]
	delete(b, name)
	if !ok || v == nil {
		return "", false, nil
	}
	s, isString := v.(string)
	if !isString || len(s) > 256 || clip(s) != s && len(s) <= 100 {
		return "", false, badRequest("Invalid value specified for property '%s'.", name)
	}
	return s, true, nil
}

func (b body) boolean(name string) (value, given bool, err error) {
	v, ok := b[name]
	delete(b, name)
	if !ok || v == nil {
		return false, false, nil
	}
	value, isBool := v.(bool)
	if !isBool {
		return false, false, badRequest("Invalid value specified for property '%s'.", name)
	}
	return value, true, nil
}

// fixed takes out properties that may be given with one value only.
func (b body) fixed(values map[string]any) error {
	for name, want := range values {
		if v, ok := b[name]; ok && v != nil && v != want {
			return badRequest("Property '%s' must be %v: nothing else is supported.", name, want)
		}
		delete(b, name)
	}
	return nil
}

func (b body) rest() error {
	for name := range b {
		if !strings.HasPrefix(name, "@odata.") {
			return resource.NotSupported("Property '%s' is not supported by this directory.", clip(name))
		}
	}
	return nil
}

// name takes displayName, which a new object must have.
func (b body) name(o *object) error {
	s, given, err := b.str("displayName")
	if err != nil {
		return err
	}
	if given {
		o.Name = s
	}
	if strings.TrimSpace(o.Name) == "" {
		return badRequest("A value is required for property 'displayName' of the resource.")
	}
	return nil
}

// enabled takes accountEnabled. Disabling moves the epoch, so that enabling again does not bring old tokens back.
func (b body) enabled(o *object) error {
	on, given, err := b.boolean("accountEnabled")
	if err != nil || !given {
		return err
	}
	if !on && !o.Disabled {
		o.Epoch++
	}
	o.Disabled = !on
	return nil
}

func duplicate(what string) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "Request_MultipleObjectsWithSameKeyValue", "Another object with the same value for property %s already exists.", what)
}

func createUser(_ *Service, d *directory, o *object, b body) error {
	upn, _, err := b.str("userPrincipalName")
	if err != nil {
		return err
	}
	if i := strings.IndexByte(upn, '@'); i < 1 || i == len(upn)-1 || strings.ContainsAny(upn, " /'") {
		return badRequest("Property 'userPrincipalName' must have the form name@domain.")
	}
	if d.upns[strings.ToLower(upn)] != nil {
		return duplicate("userPrincipalName")
	}
	if _, ok := b["passwordProfile"]; ok {
		return resource.NotSupported("Users have no passwords here: leave out 'passwordProfile'.")
	}
	delete(b, "mailNickname") // required by Graph, without meaning where there is no mail
	o.UPN = upn
	return patchUser(o, b)
}

func patchUser(o *object, b body) error {
	mail, given, err := b.str("mail")
	if err != nil {
		return err
	}
	if given {
		o.Mail = mail
	}
	if err := b.enabled(o); err != nil {
		return err
	}
	return b.name(o)
}

func createGroup(_ *Service, _ *directory, o *object, b body) error {
	delete(b, "mailNickname")
	return patchGroup(o, b)
}

func patchGroup(o *object, b body) error {
	if err := b.fixed(map[string]any{"mailEnabled": false, "securityEnabled": true}); err != nil {
		return err
	}
	return b.name(o)
}

func createApplication(_ *Service, _ *directory, o *object, b body) error {
	o.App = newGUID()
	return patchApplication(o, b)
}

func patchApplication(o *object, b body) error {
	if err := b.fixed(map[string]any{"signInAudience": "AzureADMyOrg"}); err != nil {
		return err
	}
	if v, ok := b["identifierUris"]; ok {
		list, _ := v.([]any)
		o.URIs = nil
		for _, e := range list {
			s, isString := e.(string)
			if !isString || len(s) > 256 {
				return badRequest("Invalid value specified for property 'identifierUris'.")
			}
			o.URIs = append(o.URIs, s)
		}
		delete(b, "identifierUris")
	}
	return b.name(o)
}

func createServicePrincipal(_ *Service, d *directory, o *object, b body) error {
	appID, _, err := b.str("appId")
	if err != nil {
		return err
	}
	app := d.applications[strings.ToLower(appID)]
	if app == nil || app.Tenant != o.Tenant {
		return badRequest("The appId '%s' of the service principal does not reference a valid application object.", clip(appID))
	}
	if d.principals[app.App] != nil {
		return duplicate("appId")
	}
	o.App, o.Name = app.App, app.Name
	return patchServicePrincipal(o, b)
}

func patchServicePrincipal(o *object, b body) error {
	if err := b.fixed(map[string]any{"servicePrincipalType": "Application"}); err != nil {
		return err
	}
	if err := b.enabled(o); err != nil {
		return err
	}
	return b.name(o)
}

// maxSecrets bounds the secrets of one object.
const maxSecrets = 100

func (s *Service) addPassword(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		o, err := s.find(r, c, r.Vars["id"])
		if err != nil {
			return err
		}
		b, err := readBody(r)
		if err != nil {
			return err
		}
		inner, _ := b["passwordCredential"].(map[string]any)
		name, _, err := body(inner).str("displayName")
		if err != nil {
			return err
		}
		now := s.cfg.Clock().UTC()
		until, err := body(inner).when("endDateTime", now.AddDate(2, 0, 0))
		if err != nil {
			return err
		}
		from, err := body(inner).when("startDateTime", now)
		if err != nil {
			return err
		}
		if from.After(now.Add(clockSkew)) || !until.After(now) {
			return badRequest("A credential must be valid from now on: startDateTime must not lie in the future, and endDateTime must.")
		}
		plain, sec, err := newSecret(name, now, until)
		if err != nil {
			return err
		}
		err = s.update(r.Context(), o.ID, func(_ *directory, o *object) error {
			if o.Kind == kindManagedIdentity {
				return badRequest("A managed identity has no secrets.")
			}
			if len(o.Secrets) >= maxSecrets {
				return badRequest("There are %d credentials already: remove one first.", maxSecrets)
			}
			o.Secrets = append(o.Secrets, sec)
			return nil
		})
		if err != nil {
			return err
		}
		r.Remember("keyId", sec.ID)
		v := viewSecret(sec)
		v["secretText"] = plain
		for k, h := range noStore() {
			w.Header()[k] = h
		}
		return writeJSON(w, http.StatusOK, v)
	}
}

func (b body) when(name string, otherwise time.Time) (time.Time, error) {
	s, given, err := b.str(name)
	if err != nil || !given {
		return otherwise, err
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, badRequest("Invalid value specified for property '%s'.", name)
	}
	return t.UTC(), nil
}

func (s *Service) removePassword(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		o, err := s.find(r, c, r.Vars["id"])
		if err != nil {
			return err
		}
		b, err := readBody(r)
		if err != nil {
			return err
		}
		id, _, err := b.str("keyId")
		if err != nil {
			return err
		}
		err = s.update(r.Context(), o.ID, func(_ *directory, o *object) error {
			n := len(o.Secrets)
			o.Secrets = slices.DeleteFunc(o.Secrets, func(s secret) bool { return strings.EqualFold(s.ID, id) })
			if len(o.Secrets) == n {
				return badRequest("No password credential found with keyId '%s'.", clip(id))
			}
			return nil
		})
		if err != nil {
			return err
		}
		r.Remember("keyId", id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}
