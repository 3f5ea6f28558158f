package integration_test

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

const (
	upnpDevice  = "urn:schemas-upnp-org:device:WANConnectionDevice:1"
	upnpService = "urn:schemas-upnp-org:service:WANIPConnection:1"
)

// mapPorts has the router forward the ports that are asked for by UPnP (Internet
// Gateway Device 1), as routers at home do, or only say so.
func (r *router) mapPorts(really bool) {
	r.t.Helper()
	r.forwards = really
	var search net.PacketConn
	var listener net.Listener
	if err := r.Do(func() error { // what is opened there stays there
		lan, err := net.InterfaceByName("lan")
		if err != nil {
			return err
		}
		if search, err = net.ListenMulticastUDP("udp4", lan, &net.UDPAddr{IP: net.IPv4(239, 255, 255, 250), Port: 1900}); err != nil {
			return err
		}
		listener, err = net.Listen("tcp4", "192.168.1.1:5000")
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(r.serveUPnP)}
	searched, served := make(chan struct{}), make(chan struct{})
	r.t.Cleanup(func() {
		search.Close()
		server.Close()
		<-searched
		<-served
	})
	go func() {
		defer close(served)
		server.Serve(listener)
	}()
	go func() {
		defer close(searched)
		buf := make([]byte, 2048)
		for {
			n, from, err := search.ReadFrom(buf)
			if err != nil {
				return
			}
			ask, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(buf[:n])))
			if err != nil || ask.Method != "M-SEARCH" || ask.Header.Get("ST") != upnpDevice {
				continue
			}
			fmt.Fprintf(writerTo{search, from}, "HTTP/1.1 200 OK\r\nST: %s\r\nUSN: uuid:home::%[1]s\r\nLOCATION: http://192.168.1.1:5000/\r\nCACHE-CONTROL: max-age=60\r\n\r\n", upnpDevice)
		}
	}()
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// serveUPnP describes the router's services and carries them out.
func (r *router) serveUPnP(w http.ResponseWriter, ask *http.Request) {
	if ask.Method == http.MethodGet {
		fmt.Fprintf(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceType>%s</deviceType>
			<serviceList><service><serviceType>%s</serviceType><controlURL>/</controlURL></service></serviceList></device></root>`, upnpDevice, upnpService)
		return
	}
	_, action, _ := strings.Cut(strings.Trim(ask.Header.Get("SOAPACTION"), `"`), "#")
	body, _ := io.ReadAll(ask.Body)
	answer := ""
	switch action {
	case "GetNATRSIPStatus":
		answer = "<NewRSIPAvailable>0</NewRSIPAvailable><NewNATEnabled>1</NewNATEnabled>"
	case "GetExternalIPAddress":
		answer = "<NewExternalIPAddress>" + r.ip + "</NewExternalIPAddress>"
	case "AddPortMapping":
		var env struct {
			Mapping struct {
				Outside  uint16 `xml:"NewExternalPort"`
				Inside   uint16 `xml:"NewInternalPort"`
				Client   string `xml:"NewInternalClient"`
				Protocol string `xml:"NewProtocol"`
			} `xml:"Body>AddPortMapping"`
		}
		if err := xml.Unmarshal(body, &env); err != nil || net.ParseIP(env.Mapping.Client) == nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		m := env.Mapping
		if !r.forwards {
			break
		}
		// A renewal adds the rule again, which changes nothing.
		r.Run("nft", fmt.Sprintf(`add rule ip home to iifname "wan" %s dport %d dnat to %s:%d`,
			strings.ToLower(m.Protocol), m.Outside, m.Client, m.Inside))
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%sResponse xmlns:u="%s">%s</u:%[1]sResponse></s:Body></s:Envelope>`,
		action, upnpService, answer)
}
