// Serves the user feed and the delivery tracker.
package main

import (
	"context"
	"log"
	"os"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

func main() {
	endpoint := server.NewRestate().
		Bind(restate.NewObject("UserFeed").
			Handler("processPost", restate.NewObjectHandler(processPost)).
			Handler("getFeed", restate.NewObjectSharedHandler(getFeed))).
		Bind(restate.NewObject("DeliveryTracker").
			Handler("register", restate.NewObjectHandler(register)).
			Handler("setLocation", restate.NewObjectHandler(setLocation)).
			Handler("getDelivery", restate.NewObjectSharedHandler(getDelivery)))

	if err := endpoint.Start(context.Background(), ":"+environment("PORT", "9080")); err != nil {
		log.Fatal(err)
	}
}

func environment(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}
